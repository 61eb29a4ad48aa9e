"""Adapter folders: a pure LoRA that stock PEFT reads, the comp embeddings, and a card that says what they belong to.

    adapter_model.safetensors, adapter_config.json   through PEFT's own save_pretrained, with the plain base's name
    comp.safetensors                                 the comp embeddings (and learned rates, where a scheme has them)
    ccm.json                                         format, hashes (base weights, task adapter, these files), the configuration,
                                                     the licence of the training data
    README.md                                        the same for people (`adapter_page.py`)

A folder is written beside its place and renamed, so it is there whole or not at all. A task adapter (an ordinary LoRA,
scheme=full) is merged into the base before a compression adapter is attached; the card says which one it was, and where it
stands as seen from the folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

from context_memory.adapter_page import page
from context_memory.atomic import write_json, write_text
from context_memory.errors import UserError
from context_memory.gate import MAIN

if TYPE_CHECKING:
    from context_memory.model import CompressedLM

FORMAT = 1
CARD, COMP, LORA, LORA_CONFIG = "ccm.json", "comp.safetensors", "adapter_model.safetensors", "adapter_config.json"
PAGE = "README.md"


@dataclass(frozen=True)
class Base:
    """Which weights an adapter belongs to."""

    name: str
    layers: int
    hidden: int
    vocabulary: int
    weights: str
    """Hash of the weights (`fingerprint`)."""

    def __str__(self) -> str:
        return f"'{self.name}' ({self.layers} layers, hidden size {self.hidden})"


@dataclass(frozen=True)
class Task:
    """The task adapter that is merged first."""

    path: str
    """Relative to the folder of the card."""
    sha256: str
    """Of its LoRA weights."""


@dataclass(frozen=True)
class Card:
    """What `ccm.json` says."""

    base: Base
    task: Task | None
    scheme: dict[str, Any]
    positions: str
    gate: str
    boundary: dict[str, Any]
    pins: dict[str, Any]
    config: dict[str, Any]
    files: dict[str, str] = field(default_factory=dict)
    """File -> sha256."""
    format: int = FORMAT
    licence: str = ""
    """What it was trained on leaves of its use; empty in cards from before it was noted."""

    def __post_init__(self) -> None:
        for name in ("scheme", "boundary", "pins", "config", "files"):
            if not isinstance(value := getattr(self, name), dict):
                raise TypeError(f"{name} is {value!r}")

    @property
    def is_task(self) -> bool:
        """Whether this is an ordinary LoRA on the full context, to be merged."""
        return self.scheme.get("name") == "full"

    @property
    def n_comp(self) -> list[int]:
        """The numbers of comp tokens that it was trained with."""
        return sorted(self.config.get("training", {}).get("n_comp") or [self.scheme.get("n_comp", 0)])


def sha256(path: Path) -> str:
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def fingerprint(folder: Path) -> str:
    """Hash of a model folder's weights; remembered by size and time, so that it is computed once a machine."""
    from context_memory.fetch import cache
    from context_memory.folder import weights
    from context_memory.models import KNOWN

    known = KNOWN.get(folder.name)
    if known is not None and known.gguf is not None and folder.resolve() == (cache() / known.name).resolve():
        return f"gguf:{known.gguf.sha256}"  # the name means this file, however it was converted
    files = weights(folder)
    stamp = json.dumps([[str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns] for f in files])
    notes = cache() / "fingerprints.json"
    try:
        seen: dict[str, str] = json.loads(notes.read_text())
    except (OSError, ValueError):
        seen = {}
    if stamp not in seen:
        whole = hashlib.sha256("".join(sha256(f) for f in files).encode()).hexdigest()
        seen = {old: said for old, said in seen.items() if all(Path(file).is_file() for file, *_ in json.loads(old))}
        seen[stamp] = f"weights:{whole}"
        try:
            notes.parent.mkdir(parents=True, exist_ok=True)
            write_text(notes, json.dumps(seen))
        except OSError:
            pass  # a machine on which nothing can be written computes it every time
    return seen[stamp]


def describe(name: str, folder: Path, config: Any) -> Base:
    """The facts of a loaded base model. An absolute path never becomes a name."""
    plain = Path(name).name if Path(name).is_absolute() or name.startswith((".", "~")) else name
    return Base(plain, config.num_hidden_layers, config.hidden_size, config.vocab_size, fingerprint(folder))


def save(lm: CompressedLM, folder: str | Path, card: Card, dtype: torch.dtype | None = None, name: str = MAIN) -> Path:
    """Write the adapter of `lm` to `folder`, replacing what is there.

    Args:
        dtype: to round the LoRA to, for smaller files; else it is written as it is.
        name: which of the LoRAs; the comp embeddings go with the main one.

    Raises:
        ValueError: the model has no adapter.
    """
    if lm.peft is None:
        raise ValueError(f"nothing to save: scheme '{lm.scheme.name}' was built without an adapter.")
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = folder.parent / f".{folder.name}.{os.getpid()}.partial"
    shutil.rmtree(beside, ignore_errors=True)
    for config in lm.peft.peft_config.values():
        config.base_model_name_or_path = card.base.name
    state = {k: v.to(dtype) if dtype and "lora_" in k else v for k, v in lm.peft.state_dict().items()}
    lm.peft.save_pretrained(str(beside), save_embedding_layers=False, state_dict=state, selected_adapters=[name])
    (beside / PAGE).unlink(missing_ok=True)  # PEFT's empty model card
    if name != MAIN:  # PEFT gives every other adapter a folder of its own
        for file in (inner := beside / name).iterdir():
            os.rename(file, beside / file.name)
        inner.rmdir()
    if lm.scheme.n_comp and name == MAIN:
        save_file({k: p.detach().cpu().contiguous() for k, p in lm.comp.named_parameters()}, beside / COMP)
    files = {f.name: sha256(f) for f in sorted(beside.iterdir())}
    write_json(beside / CARD, asdict(replace(card, files=files)))
    (beside / PAGE).write_text(page(folder.name, card), encoding="utf-8")
    if folder.exists():
        old = folder.parent / f".{folder.name}.{os.getpid()}.old"
        os.rename(folder, old)
        os.rename(beside, folder)
        shutil.rmtree(old)
    else:
        os.rename(beside, folder)
    return folder


def called(folder: str | Path) -> str:
    """A name for it: a run's `adapter` is called after the run.

    >>> called("result/tally/mine/adapter"), called("adapters/mine")
    ('mine', 'mine')
    """
    where = Path(folder).absolute()
    return where.parent.name if where.name == "adapter" else where.name


def read_card(folder: str | Path) -> Card:
    """The card of an adapter folder, after its files were checked.

    Raises:
        UserError: no such folder, a file that is missing, truncated or tampered with, a format of the future.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"no adapter folder at '{folder}'; give the folder that holds {CARD} and {LORA}.")
    try:
        tree = dict(json.loads((folder / CARD).read_text()))
        base, task = Base(**tree.pop("base")), tree.pop("task")
        if tree.get("format") != FORMAT:
            raise UserError(f"adapter '{folder}' has format {tree.get('format')}, this version reads {FORMAT}; update context-memory.")
        card = Card(base=base, task=Task(**task) if task else None, **tree)
    except FileNotFoundError:
        raise UserError(f"adapter '{folder}' has no {CARD}: it is not an adapter of this library, or not whole.") from None
    except (ValueError, TypeError, KeyError) as e:
        raise UserError(f"adapter '{folder}': {CARD} is damaged ({e}); get the folder again.") from e
    for name, want in card.files.items():
        if not (folder / name).is_file():
            raise UserError(f"adapter '{folder}' has no {name}, which its {CARD} lists; get the folder again.")
        if (got := sha256(folder / name)) != want:
            raise UserError(f"adapter '{folder}': {name} is truncated or changed (sha256 {got[:12]}, expected {want[:12]}); get it again.")
    if missing := [n for n in (LORA, LORA_CONFIG) if n not in card.files]:
        raise UserError(f"adapter '{folder}': {CARD} does not list {', '.join(missing)}; get the folder again.")
    return card


def copy(source: str | Path, target: str | Path) -> Path:
    """Copy an adapter folder; its card goes on pointing at the same task adapter. Other files (a README) come along.

    Raises:
        UserError: see `read_card`.
    """
    source, target = Path(source), Path(target)
    card = read_card(source)
    shutil.copytree(source, target, dirs_exist_ok=True)
    if card.task is not None:
        path = os.path.relpath(os.path.normpath(source.resolve() / card.task.path), target.resolve())
        model = {**card.config.get("model", {}), "adapter": path}
        card = replace(card, task=replace(card.task, path=path), config={**card.config, "model": model})
        write_json(target / CARD, asdict(card))
    return target


def check_base(folder: str | Path, card: Card, base: Base) -> None:
    """Raises UserError unless the adapter was trained on these weights."""
    mine = card.base
    if (mine.layers, mine.hidden, mine.vocabulary) != (base.layers, base.hidden, base.vocabulary):
        raise UserError(f"adapter '{folder}' was trained on {mine}, got {base}.")
    if mine.weights != base.weights:
        raise UserError(
            f"adapter '{folder}' was trained on {mine}, weights {mine.weights[:20]}, got {base}, weights {base.weights[:20]}: "
            "same shape, other numbers. Load the model that it was trained on."
        )
