"""An adapter's numbers, put into a model: its own, or those that a new adapter begins with."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import LoraConfig, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor

from context_memory.adapter import COMP, LORA, check_base, read_card
from context_memory.errors import UserError
from context_memory.gate import MAIN
from context_memory.model import CompressedLM


def load_comp(folder: str | Path) -> dict[str, Tensor]:
    """(n_comp, hidden) comp embeddings, as `weight`, and what else a scheme learns beside them."""
    return load_file(Path(folder) / COMP)


def fill(lm: CompressedLM, adapter: str | Path) -> None:
    """Put the saved numbers in.

    Raises:
        UserError: weights of modules that the model lacks; comp embeddings or learned rates that are missing.
    """
    assert lm.peft is not None
    lost = set_peft_model_state_dict(lm.peft, load_file(Path(adapter) / LORA))
    if lost.unexpected_keys:
        raise UserError(f"adapter '{adapter}' has weights for modules that the model lacks: {', '.join(lost.unexpected_keys[:3])}.")
    if n := lm.scheme.n_comp:
        saved = load_comp(adapter)
        rows = saved.pop("weight")[:n]
        if len(rows) < n:  # one row would be copied to all
            raise UserError(f"adapter '{adapter}' has {len(rows)} comp embedding(s) and its card says {n}; get the folder again.")
        with torch.no_grad():
            lm.comp.weight.copy_(rows)
        if lm.comp.rate is not None:
            if not saved:
                raise UserError(f"adapter '{adapter}' has no learned rates; use scheme.learned=false, as it was trained.")
            with torch.no_grad():
                lm.comp.rate.weight.copy_(saved["rate.weight"][:, :, :n])
                lm.comp.rate.bias.copy_(saved["rate.bias"][:, :, :n])


def begin(lm: CompressedLM, start: str | Path) -> None:
    """Copy the weights of another compression adapter into the fresh one of `lm`, whatever task adapter either stands on.

    Raises:
        UserError: a task adapter; one of another model; another rank, other modules, too few comp tokens.
    """
    card = read_card(start)
    assert lm.peft is not None and lm.facts is not None
    if card.is_task or not lm.scheme.n_comp:
        raise UserError(f"model.start='{start}' gives comp tokens their weights: both it and what is trained must be compression adapters.")
    check_base(start, card, lm.facts)
    theirs, mine = LoraConfig.from_pretrained(str(start)), lm.peft.peft_config[MAIN]
    have, need = max(card.n_comp), lm.scheme.n_comp
    of = [(x.r, x.lora_alpha, sorted(x.target_modules)) for x in (theirs, mine)]
    if of[0] != of[1] or have < need:
        a, b = (f"rank {r}, alpha {alpha}, on {modules} and" for r, alpha, modules in of)
        raise UserError(
            f"model.start='{start}' has LoRA of {a} {have} comp token(s), this run of {b} {need}; "
            "give model.lora_r, model.lora_alpha, model.targets and scheme.n_comp that fit."
        )
    fill(lm, start)
