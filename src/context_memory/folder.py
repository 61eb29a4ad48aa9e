"""Is a model folder whole? Asked before transformers opens it, so that the answer names the file and what to do.

Sizes are compared with what the files themselves announce; nothing is loaded, and a folder of any size is checked at once.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from context_memory.errors import ModelError

SINGLE = ("model.safetensors", "pytorch_model.bin")
"""Weights in one file; several files have an index named after it."""
AGAIN = "Get the files again, or name another model."


def check(folder: Path) -> Path:
    """Return `folder` if it is a whole model folder.

    Raises:
        ModelError: it is not; the message names the file.
    """
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise ModelError(f"{folder} is an adapter, not a model: give the model by name, and this folder as model.adapter.")
        raise ModelError(f"{folder} has no config.json: it is not a model folder.")
    _json(folder / "config.json")
    for file in weights(folder):
        if not file.is_file():
            raise ModelError(f"{folder} is incomplete: {file.name} is missing. {AGAIN}")
        if file.suffix == ".safetensors":
            whole(file)
    return folder


def weights(folder: Path) -> list[Path]:
    """The files that the weights should be in."""
    for name in SINGLE:
        index = folder / f"{name}.index.json"
        if index.is_file():
            return [folder / shard for shard in sorted(set(_json(index).get("weight_map", {}).values()))]
        if (folder / name).is_file():
            return [folder / name]
    return [folder / SINGLE[0]]


def whole(file: Path) -> Path:
    """Return a safetensors file if it is as long as its header says.

    Raises:
        ModelError: it is truncated, or no safetensors file.
    """
    size = file.stat().st_size
    with file.open("rb") as source:
        start = source.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        header = source.read(length) if length < size else b""
    try:
        ends = [x["data_offsets"][1] for key, x in json.loads(header).items() if key != "__metadata__"]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as e:
        raise ModelError(f"{file} is damaged: the header cannot be read, {size:,} bytes in all. {AGAIN}") from e
    if size != (want := 8 + length + max(ends, default=0)):
        raise ModelError(f"{file} is damaged: it has {size:,} bytes and its header announces {want:,}. {AGAIN}")
    return file


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as e:
        raise ModelError(f"{file} cannot be read as JSON: {e}. {AGAIN}") from e
    if not isinstance(found, dict):
        raise ModelError(f"{file} should hold a JSON object, and holds {type(found).__name__}. {AGAIN}")
    return found
