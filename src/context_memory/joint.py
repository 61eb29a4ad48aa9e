"""Two adapters learnt at once: a task adapter on every token beside the compression adapter, with the memory on.

A task adapter that is trained first, on the full context, teaches the model to write as if everything stayed in view. Trained together, it
learns to write and to read what a memory can carry, as LightThinker trains the whole of its model (Zhang et al. 2025, arXiv:2502.15589).
What comes of it are two ordinary folders: the task adapter is merged and the compression adapter attached, as always. "The frozen model"
(`adapter=False`, the teacher of `training.loss=distill`) is the base without either.

Seam: peft 0.21, several active adapters of one model, each with its own `LoraVariant` (`gate.py`).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, set_peft_model_state_dict
from safetensors.torch import load_file

from context_memory import gate, wiring
from context_memory.adapter import LORA, Card, check_base, read_card, save, sha256
from context_memory.errors import UserError
from context_memory.model import CompressedLM

TASK = "task"
"""PEFT's name of the task adapter while it is trained, and the folder of a run that it is saved in."""


def attach(lm: CompressedLM, fresh: LoraConfig, task: str | None = None) -> None:
    """Put a task adapter beside the compression adapter of `lm`: a fresh one, or `task` to go on with.

    Raises:
        UserError: nothing is compressed or the compression adapter acts on every token itself; `task` is no task adapter of this model.
    """
    if lm.peft is None or not lm.scheme.n_comp or lm.gate != "comp":
        raise UserError(
            f"model.joint trains a task adapter beside comp tokens' own, got scheme '{lm.scheme.name}' with gate '{lm.gate}'; "
            "use a scheme with comp tokens and model.gate=comp."
        )
    if task is not None:
        card = read_card(task)
        if not card.is_task:
            raise UserError(
                f"with model.joint, model.adapter is a task adapter to go on with, and '{task}' is a compression adapter; "
                "give that as model.start."
            )
        assert lm.facts is not None
        check_base(task, card, lm.facts)
        fresh = LoraConfig.from_pretrained(task)
    fresh.base_model_name_or_path = None
    lm.peft.add_adapter(TASK, fresh, autocast_adapter_dtype=False)
    lm.peft.base_model.set_adapter([TASK, gate.MAIN])
    gate.widen(lm.peft)
    wiring.install(lm.family.layers(lm.base), TASK, lm.family.seat, every=True)
    if task is not None:
        set_peft_model_state_dict(lm.peft, load_file(Path(task) / LORA), adapter_name=TASK)
    lm.joint = True


def save_task(lm: CompressedLM, folder: Path, card: Card, dtype: torch.dtype | None = None) -> tuple[Path, str]:
    """Write the task adapter, with the card of an ordinary LoRA; its folder and hash, which the compression adapter's card names."""
    full: dict[str, Any] = {"name": "full", "n_comp": 0}
    assert lm.peft is not None
    lora = lm.peft.peft_config[TASK]
    model = {**card.config["model"], "adapter": None, "gate": "auto", "targets": ",".join(sorted(lora.target_modules)), "lora_r": lora.r}
    config = {**card.config, "model": {**model, "lora_alpha": lora.lora_alpha}, "scheme": full}
    save(lm, folder, replace(card, task=None, scheme=full, gate="all", config=config), dtype, TASK)
    return folder, sha256(folder / LORA)
