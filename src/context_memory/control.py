"""The control of a row: the latest raw tokens in as many entries, the same words pinned, nothing trained.

What comp tokens are worth is what they add to that. The size of the window is read off the texts, so no model is run for it unless hidden
states say where segments end or what is kept; like the window row of a stream, it never has fewer entries at the peak than the row it
stands beside. Before a context is asked about, the window has more of it: it gives some up for the question and the answer, as comp
tokens need not. (Where hidden states say what stays, those of the window may say it a little differently.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from statistics import mean

from context_memory import cutting
from context_memory.encode import Encoder
from context_memory.errors import UserError
from context_memory.fetch import get
from context_memory.footprint import as_fed, peak_if_said, peak_when_answered
from context_memory.plan import Plan, layout
from context_memory.rows import Row, examples_of, load_row
from context_memory.schemes.base import Scheme
from context_memory.schemes.window import Window
from context_memory.text import Example, Segment

SAMPLE = 100
"""Examples that the size is read off."""


def window(row: Row, name: str = "") -> Row:
    """The sliding window that stands beside `row`; of its model, the tokenizer alone is loaded if that is enough.

    Raises:
        UserError: the row compresses nothing; see also `rows.load_row`.
    """
    from transformers import AutoTokenizer

    scheme = row.config.make("scheme")
    encoder = row.config.encoder(AutoTokenizer.from_pretrained(get(row.config.model.name)))
    if not (scheme.n_comp or scheme.pools):
        raise UserError(f"--window stands beside a scheme that compresses, got scheme={scheme.name}; leave it out, or name an adapter.")
    deepest = row.config.evaluation.depths
    examples = examples_of(row.config, [max(deepest)] if deepest else None)[:SAMPLE]
    lm = load_row(row.config) if encoder.readers else None
    cut = partial(cutting.segments, lm, encoder) if lm else encoder.segments
    size = size_for(scheme, encoder, examples, row.config.model.positions, cut)
    return Row(name or f"window {size}", replace(row.config, scheme={"name": "window", "n_comp": 0, "size": size}))


def size_for(
    scheme: Scheme,
    encoder: Encoder,
    examples: Sequence[Example],
    positions: str = "skip",
    cut: Callable[[Example], list[Segment]] | None = None,
) -> int:
    """The smallest window that holds at least as many entries as the scheme, on average over the examples.

    Args:
        cut: an example's segments, if not the encoder alone can tell.

    Raises:
        UserError: no examples.
    """
    if not examples:
        raise UserError("no examples to read the size of a window off; is evaluation.max_samples 0, or the split empty?")
    texts = [as_fed((cut or encoder.segments)(e), encoder) for e in examples]

    def entries(scheme: Scheme, plans: Sequence[Plan]) -> float:
        return mean(_entries(plan, scheme, segments, bool(e.context)) for plan, segments, e in zip(plans, texts, examples))

    wanted = entries(scheme, [layout(s, scheme, positions) for s in texts])
    low, plans = 2, [layout(s, Window(), positions) for s in texts]
    high = max(low, *(plan.shape[1] for plan in plans))
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if entries(Window(size=middle), plans) >= wanted else (middle + 1, high)
    return low


def _entries(plan: Plan, scheme: Scheme, segments: Sequence[Segment], told: bool) -> int:
    """At the peak of the answer: with what is held of a context and the question, or of the answer alone."""
    given = sum(len(s.ids) for s in segments if not s.target)
    return (peak_when_answered if told else peak_if_said)(plan, scheme, given)
