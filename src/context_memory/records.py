"""The folder of one evaluated row: lines that survive an interruption, and a guard against mixing two settings.

    settings.json          what every line depends on, written first
    predictions.jsonl      one line an item, in the order of the data; `predictions.partial.jsonl` until all are there
    metrics.json           what the lines come to, the settings, and how the run was started

Files appear whole: each is written beside its place and renamed. Lines of the partial file are appended batch by batch; one that
was cut off by a crash is dropped and made again.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from context_memory.atomic import read_json, write_json, write_text
from context_memory.errors import UserError
from context_memory.metrics import Metrics, Prediction, plain
from context_memory.text import Example

SETTINGS, LINES, PARTIAL, METRICS = "settings.json", "predictions.jsonl", "predictions.partial.jsonl", "metrics.json"


@dataclass(frozen=True)
class Record:
    """A row that was evaluated."""

    name: str
    folder: Path
    lines: tuple[Prediction, ...]
    settings: Mapping[str, Any]
    run: Mapping[str, Any]
    kv_bytes: int

    @property
    def scheme(self) -> str:
        return str(self.settings["scheme"]["name"])

    @property
    def ground(self) -> tuple[str, ...]:
        """What two rows must share to be compared with each other: base weights and the task adapter merged into them."""
        return tuple(json.dumps(self.settings[k], sort_keys=True) for k in ("model", "task"))


class Store:
    """The folder while it is being filled.

    Raises:
        UserError: it holds an evaluation with other settings.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], fresh: bool = False) -> None:
        self.folder, self.settings = folder, json.loads(json.dumps(settings))
        folder.mkdir(parents=True, exist_ok=True)
        if fresh:
            for name in (METRICS, LINES, PARTIAL, SETTINGS):
                (folder / name).unlink(missing_ok=True)
        note = folder / SETTINGS
        advice = "choose another run_id, or say --fresh to forget what is there"
        theirs = read_json(note, advice) if note.is_file() else self.settings
        if changed := [k for k in sorted({*theirs, *self.settings}) if theirs.get(k) != self.settings.get(k)]:
            k = changed[0]
            raise UserError(
                f"'{folder}' holds an evaluation with {k} = {_short(theirs.get(k))}, got {_short(self.settings.get(k))}; {advice}."
            )
        write_json(note, self.settings)

    def known(self, examples: Sequence[Example]) -> dict[str, Prediction]:
        """The lines that are there already, by id.

        Raises:
            UserError: lines of other items, or two examples with one id.
        """
        wanted = {e.id: e for e in examples}
        if len(wanted) != len(examples):
            raise UserError(f"{len(examples)} examples have only {len(wanted)} different ids; give each its own.")
        lines = {p.id: p for name in (LINES, PARTIAL) for p in read_lines(self.folder / name)}
        for p in lines.values():
            e = wanted.get(p.id)
            if e is None or not _answers(p, e):
                what = "is not asked for now" if e is None else _changed(p, e)
                raise UserError(
                    f"'{self.folder}' holds item '{p.id}', which {what} (other data settings, or fewer samples); "
                    "choose another run_id, or say --fresh to forget what is there."
                )
        return lines

    def add(self, lines: Sequence[Prediction]) -> None:
        """Append to the partial file."""
        append(self.folder / PARTIAL, "".join(_line(p) for p in lines))

    def finish(self, lines: Sequence[Prediction], metrics: Metrics, notes: Mapping[str, Any]) -> None:
        """All lines in their order, and what they come to."""
        write_text(self.folder / LINES, "".join(_line(p) for p in lines))
        (self.folder / PARTIAL).unlink(missing_ok=True)
        write_json(self.folder / METRICS, {**notes, **plain(metrics), "settings": self.settings})


def append(path: Path, text: str) -> None:
    """Append whole lines, behind one that was cut off, and push them to the disk."""
    torn = path.is_file() and path.stat().st_size > 0 and path.read_bytes()[-1:] != b"\n"
    with path.open("a", encoding="utf-8") as out:
        out.write("\n" * torn + text)
        out.flush()
        os.fsync(out.fileno())


def whole_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a .jsonl file; what was cut off while it was written is left out. Empty if there is no file."""
    out: list[dict[str, Any]] = []
    for line in path.read_bytes().split(b"\n") if path.is_file() else []:
        try:
            found = json.loads(line)
        except ValueError:  # half a line, perhaps half a character
            continue
        out += [found] if isinstance(found, dict) else []
    return out


def read_lines(path: Path) -> list[Prediction]:
    """The whole lines of a file of predictions."""
    out: list[Prediction] = []
    for line in whole_lines(path):
        try:
            out.append(Prediction.of(line))
        except TypeError:
            continue
    return out


def read(folder: Path) -> Record:
    """A finished row.

    Raises:
        UserError: there is none in `folder`, or it is damaged.
    """
    try:
        notes = json.loads((folder / METRICS).read_text())
        lines = tuple(read_lines(folder / LINES))
        if len(lines) != notes["n"]:
            raise UserError(f"'{folder}': {LINES} has {len(lines)} whole lines, {METRICS} counts {notes['n']}; evaluate it again.")
        return Record(notes["name"], folder, lines, notes["settings"], notes["run"], int(notes["run"].get("kv_bytes", 0)))
    except FileNotFoundError as e:
        raise UserError(f"no finished evaluation in '{folder}': {Path(e.filename).name} is missing; run ccm evaluate first.") from e
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise UserError(f"'{folder}': {METRICS} is damaged ({e}); evaluate it again.") from e


def find(folder: Path) -> list[Path]:
    """The folders of finished rows at or under `folder`, in the order in which they were finished."""
    found = [p for p in folder.rglob(METRICS) if p.with_name(LINES).is_file()]
    return [p.parent for p in sorted(found, key=lambda p: p.with_name(LINES).stat().st_mtime_ns)]


def gather(folders: Sequence[Path]) -> list[Record]:
    """The rows of several runs, `full` first and `nothing` last. What is there twice is taken once; two of one name are told
    apart by their runs.

    Raises:
        UserError: a folder without a finished evaluation.
    """
    out: list[Record] = []
    for folder in folders:
        rows = find(folder)
        if not rows:
            what = "holds no finished evaluation" if folder.is_dir() else "is a file" if folder.exists() else "is not there"
            raise UserError(f"'{folder}' {what}; give a folder that ccm evaluate wrote, as result/tally/my_run.")
        for row in map(read, rows):
            if not any(row.settings == r.settings and _asked(row) == _asked(r) for r in out):
                out.append(row)
    names = Counter(r.name for r in out)
    out = [replace(r, name=f"{run_name(r.folder.parent)}: {r.name}") if names[r.name] > 1 else r for r in out]
    return sorted(out, key=lambda r: {"full": 0, "nothing": 2}.get(r.scheme, 1))


def run_name(folder: Path) -> str:
    """What people call the run that a folder belongs to."""
    parts = folder.resolve().parts
    return parts[parts.index("evaluation") - 1] if "evaluation" in parts[1:] else parts[-1]


def facts_of_this_run() -> dict[str, Any]:
    """How this was started, and from which code."""
    program = Path(sys.argv[0]).name
    command = ["ccm" if program in ("cli.py", "__main__.py") else program, *sys.argv[1:]]
    versions = {name: _version(name) for name in ("context-memory", "torch", "transformers", "peft")}
    return {"command": shlex.join(command), "commit": _commit(), "versions": versions}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:  # run from its source
        return None


@lru_cache(maxsize=1)
def _commit() -> str | None:
    """The commit of the code, where it runs from a checkout."""
    ours = ["git", "ls-files", "--error-unmatch", Path(__file__).name]  # or it is that of a repository around an installed package
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        how: Any = {"cwd": Path(__file__).parent, "capture_output": True, "text": True, "timeout": 10, "check": True}
        found = [subprocess.run(c, **how) for c in (ours, command)]
    except (OSError, subprocess.SubprocessError):
        return None
    return found[-1].stdout.strip() or None


def _asked(row: Record) -> list[tuple[str, ...]]:
    return [(*p.key, p.asked) for p in row.lines]


def _answers(p: Prediction, e: Example) -> bool:
    """Whether the line answers the example as it is. Lines of earlier versions say only prompt and target."""
    if p.asked:
        return p.asked == e.digest
    return (p.prompt, p.target) == (e.prompt, e.target) and not (e.context or e.options or e.cuts)


def _changed(p: Prediction, e: Example) -> str:
    if (p.prompt, p.target) != (e.prompt, e.target):
        return "has another text now"
    return "has another context or other options now" if p.asked else "does not say after which context and options it was asked"


def _line(p: Prediction) -> str:
    return json.dumps(asdict(p), ensure_ascii=False) + "\n"


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) < 120 else text[:117] + "..."
