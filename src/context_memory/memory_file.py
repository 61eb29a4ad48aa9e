"""Memories on disk: safetensors with a header that says what they belong to. No pickle; written whole or not at all.

A memory is keys and values of one model under one adapter: with another one it is noise. The header names model, adapter,
tokenizer and scheme with their hashes, and opening refuses anything else. Names are there to be said: what is compared of weights,
adapter and tokenizer is their hash, so that a folder may be renamed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from context_memory.atomic import whole
from context_memory.errors import UserError
from context_memory.memory import CLOCKS, Memory
from context_memory.plan import Tokens

if TYPE_CHECKING:
    from context_memory.model import CompressedLM

FORMAT = "context-memory 2"
NOTHING: Mapping[str, Any] = {}
RULES = "tokenizer rules"
"""Its merges and chat template. Files from before they were noted have only the hash of its vocabulary."""


def save(memory: Memory, path: str | Path, notes: Mapping[str, Any] = NOTHING) -> None:
    """Write a memory to a file; an older file there is replaced only by a whole new one.

    Args:
        notes: what else its owner needs to go on, as JSON can hold it.

    Raises:
        UserError: the file cannot be written.
    """
    path = Path(path)
    width = memory.tokens
    tensors = {f"held.{name}": getattr(memory.held, name)[:, :width] for name in vars(memory.held)}
    tensors |= {"slot": memory.slot[:, :width]}
    tensors |= {name: torch.tensor(getattr(memory, name)) for name in CLOCKS}
    for i, layer in enumerate(memory.layers):
        if layer.keys is not None:
            tensors |= {f"{i}.keys": layer.keys[:, :, :width], f"{i}.values": layer.values[:, :, :width]}
    for i, (keys, values) in enumerate(memory.mean):
        tensors |= {f"{i}.mean_keys": keys, f"{i}.mean_values": values}
    tensors = {name: x.contiguous().cpu() for name, x in tensors.items()}
    header = {"format": FORMAT, "belongs_to": json.dumps(identity(memory.lm), sort_keys=True), "notes": json.dumps(dict(notes))}
    header["called"] = json.dumps(names(memory.lm), sort_keys=True)
    header["content"] = digest(tensors, header)
    if not path.name:
        raise UserError(f"'{path}' is no file to write a memory to; give it a name, such as jin.ccm.")
    if path.is_file() and path.suffix != ".ccm" and not _ours(path):
        raise UserError(f"'{path}' is there and is no memory file; name another, such as {path.with_suffix('.ccm')}.")
    try:
        with whole(path) as beside:
            save_file(tensors, beside, metadata=header)
    except (SafetensorError, OSError) as e:
        raise UserError(f"the memory cannot be written to '{path}' ({e}); name a file in a folder that is there.") from e


def _ours(path: Path) -> bool:
    """Whether a file begins as those that are written here."""
    with path.open("rb") as source:
        return FORMAT.encode() in source.read(1 << 16)


def identity(lm: CompressedLM) -> dict[str, str]:
    """What a memory file belongs to."""
    config, tokenizer = lm.base.config, lm.tokenizer
    words = sorted(tokenizer.get_vocab().items()) if tokenizer is not None else []
    rules = _rules(tokenizer)
    adapter: Any = lm.card.files if lm.card is not None else {} if lm.peft is None else _glance(lm, adapter=True)
    return {
        "model": str(lm.facts) if lm.facts is not None else f"{config.model_type} ({lm.n_layers} layers)",
        "weights": lm.facts.weights if lm.facts is not None else _glance(lm, adapter=False),
        "adapter": _hash([adapter, lm.task[1] if lm.task is not None else ""]),
        "tokenizer": _hash(words),
        "scheme": f"{lm.scheme!r} positions={lm.positions}",
        "dtype": str(lm.base.dtype).removeprefix("torch."),
        **({RULES: _hash(rules)} if rules is not None else {}),
    }


def names(lm: CompressedLM) -> dict[str, str]:
    """What people call those that `identity` has a hash of."""
    from context_memory.adapter import called

    model = lm.facts.name if lm.facts is not None else ""
    return {"weights": model, "adapter": called(lm.home) if lm.home is not None else "", "tokenizer": model, RULES: model}


def _rules(tokenizer: Any) -> list[Any] | None:
    """What makes tokens of a text beside the vocabulary, in a form that other versions of the library write as well (they differ in how a
    merge is written); None for a tokenizer that does not say."""
    core = getattr(tokenizer, "backend_tokenizer", None)
    if core is None:
        return None
    merges = json.loads(core.to_str())["model"].get("merges") or []
    return [[m if isinstance(m, str) else " ".join(m) for m in merges], tokenizer.chat_template]


def _glance(lm: CompressedLM, adapter: bool) -> str:
    """Of weights that came from no file that has a hash: of each, the first few numbers, those of the adapter or those of the base."""
    own = {name: p for name, p in lm.named_parameters() if (p.requires_grad or "lora_" in name) == adapter}
    return _hash([(name, p.detach().flatten()[:16].tolist()) for name, p in sorted(own.items())])


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


NO_ADAPTER = _hash([{}, ""])


def _said(name: str, value: str | None, names: Mapping[str, str]) -> str:
    """An entry of an identity, for people: `'mine' (sha256 3f15...)`.

    >>> _said("adapter", "3f15c2a09b7d11e4", {"adapter": "mine"}), _said("adapter", NO_ADAPTER, {}), _said("dtype", "float32", {})
    ("'mine' (sha256 3f15c2a09b7d)", 'none', "'float32'")
    """
    if not value or (name == "adapter" and value == NO_ADAPTER):
        return "none"
    if name not in ("weights", "adapter", "tokenizer", RULES):
        return value if value.startswith("'") else f"'{value}'"
    known = value[:20] if ":" in value else f"sha256 {value[:12]}"
    return f"'{names[name]}' ({known})" if names.get(name) else known


def digest(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> str:
    """sha256 over the header and the tensors' names, shapes and bytes."""
    out = hashlib.sha256(json.dumps({k: v for k, v in header.items() if k != "content"}, sort_keys=True).encode())
    for name in sorted(tensors):
        out.update(f"{name} {tuple(tensors[name].shape)} {tensors[name].dtype}".encode())
        out.update(tensors[name].contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return out.hexdigest()


def must_be_there(path: Path) -> None:
    """Raises UserError unless there is a file; what it holds is seen when it is read."""
    if path.is_dir():
        raise UserError(f"'{path}' is a folder and not a memory file; name the file, as in {path / 'jin.ccm'}.")
    if not path.is_file():
        raise UserError(f"there is no memory at '{path}'; name a file that was saved, or start without one.")


def read(lm: CompressedLM, path: str | Path) -> tuple[Memory, dict[str, Any]]:
    """The memory in a file, and its notes.

    Raises:
        UserError: no such file; not a memory or a damaged one; the memory of another model, adapter, tokenizer or scheme.
    """
    must_be_there(path := Path(path))
    try:
        with safe_open(path, "pt") as source:
            header = source.metadata() or {}
            tensors = {name: source.get_tensor(name) for name in source.keys()}
    except (SafetensorError, OSError) as e:
        raise UserError(f"'{path}' is damaged or not a memory file ({e}); write it again with memory.save.") from e
    if header.get("format") != FORMAT:
        raise UserError(f"'{path}' has the format {header.get('format')!r}, this version reads {FORMAT!r}.")
    if header.get("content") != digest(tensors, header):
        raise UserError(f"'{path}' is damaged or not a memory file (its content was changed); write it again with memory.save.")
    theirs, ours = json.loads(header["belongs_to"]), identity(lm)
    for name, value in ours.items():
        if theirs.get(name) != value and (name in theirs or name != RULES):
            was, here = _said(name, theirs.get(name), json.loads(header.get("called", "{}"))), _said(name, value, names(lm))
            raise UserError(f"memory '{path}' was written with {name} {was}, here is {here}; open it with the one that wrote it.")
    memory = Memory(lm, len(tensors["length"]))
    for name in CLOCKS:
        setattr(memory, name, tensors[name].tolist())
    memory.held = Tokens(**{name: tensors[f"held.{name}"].to(lm.device) for name in vars(memory.held)})
    memory.slot = tensors["slot"].to(lm.device)
    for i, layer in enumerate(memory.layers):
        if f"{i}.keys" in tensors:
            layer.keys, layer.values = tensors[f"{i}.keys"].to(lm.device), tensors[f"{i}.values"].to(lm.device)
            layer.is_initialized = True
        if f"{i}.mean_keys" in tensors:
            memory.mean.append((tensors[f"{i}.mean_keys"].to(lm.device), tensors[f"{i}.mean_values"].to(lm.device)))
    return memory, json.loads(header["notes"])
