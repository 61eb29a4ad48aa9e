"""What a training is made from, told by contents: the same path may hold something else tomorrow."""

from __future__ import annotations

import hashlib
import json

from context_memory import adapter as folders
from context_memory.config import Config

SAMPLE = 64
"""Examples that are looked at, evenly spread; their number counts as well."""


def material(config: Config, model: bool = True) -> dict[str, str]:
    """Setting -> a hash of what it names.

    Args:
        model: the base model is the one that the configuration names.

    Raises:
        UserError: something that it names cannot be had.
    """
    from context_memory.fetch import get

    examples = config.training_examples()
    step = max(1, len(examples) // SAMPLE)
    out = {"data": _hash(len(examples), *(examples[i].digest for i in range(0, len(examples), step)))}
    if model:
        out["model.name"] = folders.fingerprint(get(config.model.name))
    named = {"model.adapter": config.model.adapter, "model.start": config.model.start}
    return out | {key: _hash(folders.read_card(folder).files) for key, folder in named.items() if folder}


def _hash(*facts: object) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
