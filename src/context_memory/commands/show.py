"""`ccm show`: the mask of a scheme, drawn for a few letters or for a real text."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from context_memory.config import Config
    from context_memory.text import Segment


def show(
    arguments: Annotated[list[str], typer.Argument(help="key=value, e.g. scheme=merge scheme.n_comp=1; and a text: ab|c|d, or words.")],
    prompt: Annotated[str, typer.Option(help="A question before the text; pinned, unless pins=[] says otherwise.")] = "",
    save: Annotated[Path | None, typer.Option(help="Also write the picture to this PNG file.")] = None,
) -> None:
    r"""Draw who sees whom.

    ab|c|d: a cell a letter, | ends a segment. Words: tokens, cut by boundary=...; \n is a new line.
    """
    from context_memory import pictures
    from context_memory.compose import load
    from context_memory.console import terminal
    from context_memory.errors import UserError
    from context_memory.overrides import is_override
    from context_memory.plan import layout
    from context_memory.show import draw

    overrides = [a for a in arguments if is_override(a)]
    rest = [a for a in arguments if not is_override(a)]
    if slip := next((a for a in rest if re.match(r"[a-z_.]+=\w", a)), None):
        raise UserError(f"'{slip}' is no setting that there is; is it misspelt? Quote a text with = in it together with other words.")
    text = " ".join(rest).replace("\\n", "\n")
    if not text:
        raise UserError("no text to draw; give one, as in: ccm show scheme=concat 'ab|c|d'.")
    config = load(overrides)
    scheme = config.make("scheme")
    if not scheme.static:
        raise UserError(f"scheme '{scheme.name}' has no mask to draw: what it keeps depends on the keys. Try scheme=window.")
    few = "|" in text and not prompt
    segments = _letters(text) if few else _words(text, prompt, config)
    try:
        plan = layout(segments, scheme, config.model.positions)
    except ValueError as e:
        raise UserError(str(e)) from e
    console = terminal()
    if few:
        console.print(draw(plan, scheme), markup=False, highlight=False)
    else:
        grid = pictures.fit(pictures.cells(plan, scheme), console.width)
        console.print(pictures.blocks(grid) if console.is_terminal else pictures.letters(grid), markup=False, highlight=False)
        console.print(pictures.legend(console.is_terminal))
    kept = f"{plan.real} tokens of text, {sum(s.compress for s in segments)} segments compressed"
    console.print(f"{scheme.name}: {kept}; {'nothing is hidden' if not plan.hides(scheme) else 'what is not marked is forgotten'}")
    if save is not None:
        print(pictures.save(pictures.cells(plan, scheme), save, f"{scheme}: {kept}"))


def _letters(text: str) -> list[Segment]:
    from context_memory.text import Segment

    parts = text.split("|")
    return [Segment(tuple(map(ord, part)), compress=i < len(parts) - 1) for i, part in enumerate(parts)]


def _words(text: str, prompt: str, config: Config) -> list[Segment]:
    """The text as an answer to the prompt, in tokens of the model; only its tokenizer is loaded."""
    from transformers import AutoTokenizer

    from context_memory.encode import Keeping
    from context_memory.fetch import get
    from context_memory.text import Example, Segment

    words = AutoTokenizer.from_pretrained(get(config.model.name))
    encoder = config.encoder(words)
    if prompt:
        return encoder.segments(Example(prompt, text))
    steps = encoder.boundary.split(encoder.ids(text), encoder.piece)
    keeping = Keeping(encoder)
    return [Segment(s, pins=keeping.pin(s, first=i == 0), compress=i < len(steps) - 1, target=True) for i, s in enumerate(steps)]
