"""From names to a model that runs: base, task adapter merged in float32, compression adapter attached. In this order, always.

(Both as active PEFT adapters would make both trainable; merging one of two switches the other off.)
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from torch import nn

from context_memory import adapter as folders
from context_memory import plugins
from context_memory.adapter import Base, Card, Task
from context_memory.config import Config
from context_memory.errors import UserError
from context_memory.families.base import Family
from context_memory.model import CompressedLM
from context_memory.schemes.base import Scheme


def load(
    name: str, adapter: str | Path | None = None, *, scheme: Scheme | None = None, dtype: str | torch.dtype = "bfloat16",
    attn_implementation: str = "sdpa", lora: LoraConfig | None = None, positions: str | None = None, gate: str | None = None,
    device: str | torch.device | None = None,
) -> CompressedLM:  # fmt: skip
    """A model by name, with an adapter if one is given.

    A task adapter is merged and leaves a plain model; a compression adapter brings its task adapter, scheme and settings along.

    Args:
        scheme: instead of the adapter's (`full` and `nothing` run the same merged base without the adapter).
        lora: attach a fresh adapter, for training.

    Raises:
        UserError: no such model or adapter; an adapter of another model; a damaged one; a scheme that does not fit it.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from context_memory.fetch import get

    folder = get(name)
    card = folders.read_card(adapter) if adapter is not None else None
    task = _task(Path(adapter), card) if adapter is not None and card is not None else None
    wanted = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32 if task else wanted)
    facts = folders.describe(name, folder, base.config)
    if card is not None:
        folders.check_base(str(adapter), card, facts)
    if task is not None:
        if task != Path(str(adapter)):
            folders.check_base(task, folders.read_card(task), facts)
        base = merge(base, task)
        cast(base, wanted)
    if device is not None:
        base = base.to(device)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chosen = scheme or _scheme(card)
    settings: dict[str, Any] = {"attn_implementation": attn_implementation}
    attaches = card is not None and not card.is_task and (chosen.n_comp > 0 or card.gate == "all") and lora is None
    if attaches:
        assert card is not None and adapter is not None
        if chosen.n_comp != card.scheme.get("n_comp", 0):
            raise UserError(f"adapter '{adapter}' has {card.scheme.get('n_comp', 0)} comp tokens, the scheme wants {chosen.n_comp}; use scheme.n_comp={card.scheme.get('n_comp', 0)}.")  # fmt: skip
        lora = LoraConfig.from_pretrained(str(adapter))
        settings |= {"positions": positions or card.positions, "gate": gate or card.gate}
    else:
        settings |= {"positions": positions or (card.positions if card else "skip"), "gate": gate or ("comp" if chosen.n_comp else "all")}
    try:
        lm = CompressedLM(base, tokenizer, chosen, lora=lora, **settings)
    except (ValueError, LookupError) as e:
        raise UserError(str(e.args[0])) from e
    if attaches:
        _fill(lm, Path(str(adapter)))
    lm.facts, lm.card = facts, card
    lm.task = None if task is None else (task, folders.sha256(task / folders.LORA))
    return lm.eval()


def merge(base: nn.Module, task: Path) -> nn.Module:
    """Fold an ordinary LoRA into the weights.

    Raises:
        UserError: the base is quantized, and the sum would be rounded to its grid.
    """
    if getattr(base, "is_quantized", False) or getattr(base, "hf_quantizer", None) is not None:
        raise UserError(f"task adapter '{task}' cannot be merged into a quantized model; load the model in bfloat16 or float32.")
    return PeftModel.from_pretrained(base, str(task)).merge_and_unload()


def cast(model: nn.Module, dtype: torch.dtype) -> None:
    """Round the parameters, once. Not `.to(dtype)`: that would round the rotary frequencies too."""
    for p in model.parameters():
        p.data = p.data.to(dtype)
    model.config.dtype = dtype  # type: ignore[union-attr]


def build(config: Config) -> CompressedLM:
    """The model that a configuration trains: the base (with its task adapter merged) and an adapter, fresh or gone on with."""
    m, scheme = config.model, config.make("scheme")
    card = folders.read_card(m.adapter) if m.adapter else None
    goes_on = card is not None and not card.is_task
    lora = None if goes_on else LoraConfig(
        r=m.lora_r, lora_alpha=m.lora_alpha, lora_dropout=m.lora_dropout, target_modules=targets(config), task_type="CAUSAL_LM"
    )  # fmt: skip
    torch.manual_seed(config.training.seed)
    lm = load(
        m.name, m.adapter, scheme=scheme, dtype=m.dtype, attn_implementation=m.attn_implementation, lora=lora,
        positions=m.positions, gate=config.gate(),
    )  # fmt: skip
    for key, p in lm.named_parameters():
        p.requires_grad_(("lora_" in key or key == "comp.weight") and p.numel() > 0)
    return lm


def targets(config: Config) -> list[str]:
    """The modules that get LoRA."""
    from transformers import AutoConfig

    from context_memory.fetch import get

    wanted = config.model.targets
    if wanted == "auto":
        wanted = "all" if not config.scheme.get("n_comp") else "attention"
    if wanted not in ("all", "attention"):
        return [name.strip() for name in wanted.split(",")]
    kind = AutoConfig.from_pretrained(get(config.model.name)).model_type
    try:
        family: Family = plugins.make("families", kind)  # type: ignore[assignment]
    except LookupError as e:
        raise UserError(f"model '{config.model.name}': {e.args[0]}") from e
    return list(family.all_linear if wanted == "all" else family.targets)


def card_of(lm: CompressedLM, config: Config, place: Path) -> Card:
    """The card of an adapter that is to be saved at `place`."""
    base: Base = lm.facts
    task = None
    if lm.task is not None:
        path, digest = lm.task
        task = Task(os.path.relpath(path.resolve(), place.resolve()), digest)
    tree = config.to_dict()
    tree["model"] = {**tree["model"], "name": base.name, "adapter": task and task.path}
    tree["data"] = {k: Path(v).name if isinstance(v, str) and os.path.isabs(v) else v for k, v in tree["data"].items()}
    tree |= {"output": "result", "run_id": None}  # where it was trained means nothing elsewhere
    return Card(
        base=base, task=task, scheme=config.scheme, positions=lm.positions, gate=lm.gate, boundary=config.boundary, pins=config.pins, config=tree
    )


def _scheme(card: Card | None) -> Scheme:
    if card is None or card.is_task:
        return plugins.make("schemes", "full")  # type: ignore[return-value]
    return Config(scheme=card.scheme).make("scheme")  # type: ignore[no-any-return]


def _task(adapter: Path, card: Card) -> Path | None:
    """The folder of the task adapter to merge: this one, or the one that its card names, checked against the card."""
    if card.is_task:
        return adapter
    if card.task is None:
        return None
    path = Path(os.path.normpath(adapter / card.task.path))
    if not (path / folders.LORA).is_file():
        raise UserError(f"adapter '{adapter}' was trained on top of the task adapter '{card.task.path}', which is not there; put it at '{path}'.")
    if (got := folders.sha256(path / folders.LORA)) != card.task.sha256:
        raise UserError(
            f"adapter '{adapter}' was trained on top of another task adapter than the one at '{path}' "
            f"(sha256 {got[:12]}, expected {card.task.sha256[:12]})."
        )
    return path


def _fill(lm: CompressedLM, adapter: Path) -> None:
    """Put the saved numbers in."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    assert lm.peft is not None
    lost = set_peft_model_state_dict(lm.peft, load_file(adapter / folders.LORA))
    if lost.unexpected_keys:
        raise UserError(f"adapter '{adapter}' has weights for modules that the model lacks: {', '.join(lost.unexpected_keys[:3])}.")
    if lm.scheme.n_comp:
        with torch.no_grad():
            lm.comp.weight.copy_(folders.load_comp(adapter))
