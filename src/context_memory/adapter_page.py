"""The README.md of an adapter folder: for a person what `ccm.json` is for a program. It is not among the files that the card guards, so it
may be written anew by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from context_memory.data._licences import UNKNOWN, non_commercial

if TYPE_CHECKING:
    from context_memory.adapter import Card

LENGTH = ("max_steps", "epochs", "max_minutes")


def page(name: str, card: Card) -> str:
    """The page of the adapter in the folder `name`."""
    kind = (
        "A task adapter: an ordinary LoRA with the full context, which is merged into the base before a compression adapter is attached."
        if card.is_task
        else "A compression adapter: a LoRA and embeddings of comp tokens, for `model.adapter=` of context-memory."
    )
    model, training = card.config.get("model", {}), card.config.get("training", {})
    pins = "; ".join(_said(pin, settings) for pin, settings in card.pins.items()) or "none"
    boundary = _plugin(card.boundary)
    rows = {
        "base model": f"{card.base}, weights `{card.base.weights[:24]}`" + (f", with `{card.task.path}` merged" if card.task else ""),
        "scheme": f"{_plugin(card.scheme)}; positions {card.positions}; boundary {boundary}; pins {pins}",
        "data": _plugin(card.config.get("data", {})),
        "recipe": f"LoRA {_some(model, 'lora_r', 'lora_alpha', 'lora_dropout', 'targets')}, gate {card.gate}; "
        + _some(training, "loss", "lr", "schedule", "tokens_per_batch", "batch_size", "accumulate", "seed", *LENGTH),
        "licence of the data": said_of(card.licence),
    }
    lines = [f"| {key} | {value.replace('|', '/')} |" for key, value in rows.items()]
    return "\n".join([f"# {name}", "", kind, "", "| | |", "|---|---|", *lines]) + "\n"


def said_of(licence: str) -> str:
    """A licence, and what follows from it.

    >>> said_of("CC-BY-NC-SA-4.0"), said_of("MIT")
    ('CC-BY-NC-SA-4.0: the adapter is for non-commercial use', 'MIT')
    """
    if non_commercial(licence):
        return f"{licence}: the adapter is for non-commercial use"
    return licence if licence and UNKNOWN not in licence else f"{licence or UNKNOWN}: see where the data come from"


def _plugin(settings: Mapping[str, Any]) -> str:
    return _said(str(settings.get("name", "?")), {k: v for k, v in settings.items() if k != "name"})


def _said(name: str, settings: Mapping[str, Any]) -> str:
    return f"`{name}`" + (f" ({some})" if (some := _some(settings, *settings)) else "")


def _some(settings: Mapping[str, Any], *names: str) -> str:
    """Those that are set."""
    return ", ".join(f"{n} {settings[n]}" for n in names if settings.get(n) not in (None, "", [], {}))
