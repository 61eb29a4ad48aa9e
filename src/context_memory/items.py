"""The items of an evaluation: laid out, put into batches, and what became of each as a line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from context_memory import cutting
from context_memory.data.base import Dataset
from context_memory.depths import depth_of
from context_memory.encode import Encoder
from context_memory.errors import UserError
from context_memory.footprint import as_fed, peak_if_said
from context_memory.metrics import Prediction
from context_memory.model import CompressedLM
from context_memory.output import Output
from context_memory.plan import layout
from context_memory.reading import Reading, target_plan
from context_memory.recall import Recalled
from context_memory.text import Example


class Item:
    """An example, laid out: its prompt, its whole text in one pass, and what a memory of it would weigh."""

    def __init__(self, example: Example, encoder: Encoder, lm: CompressedLM, exact: bool) -> None:
        if example.options and example.target not in example.options:
            have = list(example.options)
            raise UserError(f"item '{example.id}': the target {example.target!r} must be one of its options, {have}; add it, or have none.")
        self.example = example
        self.prompt = encoder.prompt(example)
        self.known = exact or not encoder.readers
        """Whether boundaries and pins of the target are known: where hidden states decide, finding them takes passes of the model."""
        segments = cutting.segments(lm, encoder, example) if self.known else encoder.uncut(example)
        said = as_fed(segments, encoder)
        # After a context the end of the turn is not counted, as `reading.read` has it.
        self.plan = target_plan(lm, said if example.context else segments)
        if (last := int(self.plan.tokens.position.max())) >= lm.max_positions:
            limit = f"and the model has {lm.max_positions}"
            raise UserError(f"item '{example.id}' ends at position {last} {limit}; leave it out, or use another model.")
        given = sum(len(s.ids) for s in segments if not s.target)
        self.target_tokens = sum(len(s.ids) for s in said) - given
        self.target_peak = peak_if_said(layout(said, lm.scheme, lm.positions), lm.scheme, given) if self.known else None
        self.line = Prediction(
            example.id, example.prompt, example.target, target_peak=self.target_peak, target_tokens=self.target_tokens,
            asked=example.digest, group=example.group,
        )  # fmt: skip
        self.has_boundary = not self.known or any(s.compress and s.target for s in segments)
        self.length = self.plan.shape[1]
        self.kind = (not example.options, not example.context, depth_of(example.id) or 0)
        """Items of one kind are evaluated in one way: options are chosen among, a context is written to a memory; memories of one depth
        pad each other, and not those of another."""
        self.together = (example.context, example.running, example.turns) if example.context else example.id
        t = self.plan.tokens
        closed = int((t.raw & ~t.pin & (t.segment < t.segment.max())).sum())
        self.hides = self.plan.hides(lm.scheme) if lm.scheme.static else closed > lm.scheme.capacity(int(t.segment.max()))


def batches(items: Sequence[Item], size: int) -> Iterator[tuple[int, list[Item]]]:
    """Batches of one kind, each with the number of items before it. The longest first: what does not fit, shows at once. Items that
    share a context stay together: its memory is written once."""
    longest: dict[Any, int] = {}
    for item in items:
        longest[item.together] = max(item.length, longest.get(item.together, 0))
    place = {key: i for i, key in enumerate(longest)}
    before = 0
    for kind in sorted({i.kind for i in items}):
        some = sorted((i for i in items if i.kind == kind), key=lambda i: (-longest[i.together], place[i.together], -i.length))
        for start in range(0, len(some), size):
            yield before, some[start : start + size]
            before += len(some[start : start + size])


def chosen(item: Item, reading: Reading, dataset: Dataset, likelihood: bool) -> Prediction:
    """The likeliest option as an answer; the NLL is that of the right one."""
    e = item.example
    answer, right = e.options[reading.choice], e.options.index(e.target)
    line = replace(item.line, answer=answer, scores=dataset.score(e, answer), reason="chosen", option_nll=reading.nll)
    line = replace(line, compressions=len(e.context), classes=dataset.classes(e, answer) or ())
    return held(replace(line, nll=reading.nll[right], nll_tokens=reading.tokens[right]) if likelihood else line, reading)


def held(line: Prediction, reading: Reading) -> Prediction:
    """With what was held of its context."""
    return replace(line, memory_kv=reading.entries, memory_bytes=reading.nbytes, context_tokens=reading.context_tokens)


def answered(item: Item, out: Output, seconds: float, dataset: Dataset) -> Prediction:
    """With the answer that was written and what it cost."""
    scores, classes = dataset.score(item.example, out.text), dataset.classes(item.example, out.text) or ()
    return replace(
        item.line, answer=out.text, scores=scores, classes=classes, reason=out.reason, compressions=out.compressions, seconds=seconds,
        prompt_tokens=out.prompt_tokens, tokens=len(out.ids), peak_kv=out.peak_kv_tokens, mean_kv=out.mean_kv_tokens,
        peak_reasoning_kv=out.peak_reasoning_kv_tokens, mean_reasoning_kv=out.mean_reasoning_kv_tokens,
        peak_kv_bytes=out.peak_kv_bytes,
    )  # fmt: skip


def recalled(line: Prediction, numbers: Sequence[Recalled]) -> Prediction:
    """The score is the share of an answer's numbers; an answer without any has none."""
    scores = {"recall": sum(n.known for n in numbers) / len(numbers)} if numbers else {}
    return replace(line, recall=tuple(numbers), scores={**line.scores, **scores})
