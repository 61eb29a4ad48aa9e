"""What a set of answers comes to: means with 95 % intervals, and paired comparisons on the same items. Pure functions, no model.

Two rows of a table answer the same items, so their difference is far better known than either of them: `versus` pairs item
by item (McNemar's exact test for right and wrong; the mean difference where an item can be partly right). Every number of a table is
computed here from `predictions.jsonl` alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from context_memory.f1 import macro_f1
from context_memory.intervals import Estimate, mean, paired_difference, ratio, share, sign_test


@dataclass(frozen=True)
class Prediction:
    """One line of `predictions.jsonl`. Entries are counted a layer; what was not measured is None."""

    id: str
    prompt: str
    target: str
    answer: str | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    reason: str | None = None
    """Why the answer ended: `eos`, `stop` or `length`; `chosen` if it is one of the item's options."""
    compressions: int = 0
    prompt_tokens: int = 0
    tokens: int = 0
    """Generated."""
    peak_kv: int = 0
    mean_kv: float = 0.0
    peak_reasoning_kv: int = 0
    """Without what is held of the prompt verbatim; the current segment and comp tokens included."""
    mean_reasoning_kv: float = 0.0
    peak_kv_bytes: int = 0
    """This row's share of the live buffers at their largest, padding included."""
    seconds: float = 0.0
    """Of decoding: the batch's time, divided by its rows."""
    target_peak: int | None = 0
    """Peak reasoning entries if the target were the answer: the memory's size at equal output length; None where its boundaries
    were not looked for."""
    target_tokens: int = 0
    """The same without any compression."""
    nll: float | None = None
    """Sum over the target's tokens, teacher-forced."""
    nll_tokens: int = 0
    option_nll: Sequence[float] = ()
    """Sums over the tokens of each option, in their order."""
    memory_kv: int | None = None
    """Entries a layer that were held of the context when the question came."""
    memory_bytes: int = 0
    """Live keys and values then, measured; this row's share, padding included."""
    context_tokens: int = 0
    """Raw tokens of the context."""
    recall: Sequence[tuple[str, bool, float]] = ()
    """Numbers of the answer: which, whether the memory gives it back, and with what probability (`recall.py`)."""
    asked: str = ""
    """`Example.digest`: which example this answers, context and options included; empty in a line of an earlier version."""
    group: str = ""
    """`Example.group`: items of one are no independent evidence."""

    classes: Sequence[str] = ()
    """Where the answer is a class: of which classes, the right one, the one that was answered (`f1.py`)."""

    @property
    def key(self) -> tuple[str, str, str]:
        """What makes two predictions answers to the same item."""
        return self.id, self.prompt, self.target

    @classmethod
    def of(cls, line: Mapping[str, Any]) -> Prediction:
        """From a parsed line; keys of a later version are left out."""
        known = {f.name for f in fields(cls)}
        found = {k: v for k, v in line.items() if k in known}
        recall, lists = tuple(map(tuple, line.get("recall", ()))), {k: tuple(line.get(k, ())) for k in ("option_nll", "classes")}
        return cls(**found | {"recall": recall, **lists})


@dataclass(frozen=True)
class Metrics:
    """One row of a table by itself."""

    n: int
    scores: dict[str, Estimate]
    """`correct` is always there where answers were generated."""
    nll: Estimate | None
    """Per target token."""
    nll_tokens: int
    peak_reasoning_kv: Estimate | None
    mean_reasoning_kv: float
    peak_kv: float
    mean_kv: float
    peak_kv_bytes: float
    """Measured on live tensors, padding included; mean over answers."""
    max_kv_bytes: int
    """The largest of them."""
    mean_kv_bytes: float
    """Entries times the bytes of one over all layers, as the next two: without padding, which belongs to no part of the text."""
    peak_reasoning_bytes: float
    mean_reasoning_bytes: float
    compressions: float
    """Per answer."""
    tokens: float
    """Per answer."""
    tokens_per_second: float | None
    equal_length_ratio: float | None
    """Peak reasoning entries over those of an uncompressed cache, both on the target."""
    cut_off: float
    """Share of answers that ended for want of room (`reason` is length)."""
    memory_kv: Estimate | None = None
    """Entries a layer held of a context when the question came."""
    memory_bytes: float = 0.0
    """The same as live bytes, measured, padding included."""
    context_tokens: float = 0.0
    """Raw tokens of that context."""


@dataclass(frozen=True)
class Versus:
    """A row against another (`full`, or what `--against` names) on the items that both answered."""

    n: int
    difference: Estimate | None
    """Of the share that is correct."""
    p: float | None
    """McNemar, exact, two-sided; None where an item can be partly right, which it does not know."""
    gained: int
    lost: int
    """Items that this row, and that `full`, answered better than the other."""
    kv_ratio: float | None
    """Mean per-answer peak of reasoning entries over `full`'s."""
    kv_ratio_whole: float | None
    """The same with the prompt."""
    nll_difference: Estimate | None
    """Per target token, paired."""
    gap_closed: Estimate | None
    """Share of the NLL gap between `nothing` and `full`, where those are rows of the table."""
    accuracy_gap_closed: Estimate | None = None
    """The same of the share that is correct."""


def summarise(predictions: Sequence[Prediction], kv_bytes: int = 0) -> Metrics:
    """A row by itself; `kv_bytes` are the bytes of one entry over all layers.

    Raises:
        ValueError: no predictions.
    """
    if not predictions:
        raise ValueError("nothing to summarise: no item was evaluated.")
    said = [p for p in predictions if p.answer is not None]
    names = sorted({name for p in said for name in p.scores}, key=natural)
    scores = {name: _scored(name, [p for p in said if name in p.scores]) for name in names}
    if classed := [p for p in said if p.classes]:
        scores["macro_f1"] = macro_f1([(p.classes[0], p.classes[1], p.classes[2]) for p in classed], _groups(classed))
    said = [p for p in said if p.reason != "chosen"]  # what follows is about answers that were written
    after = [p for p in predictions if p.memory_kv is not None]
    seconds, forced = sum(p.seconds for p in said), [p for p in predictions if p.nll is not None]
    nll_tokens = sum(p.nll_tokens for p in forced)
    peak = mean([p.peak_reasoning_kv for p in said], _groups(said)) if said else None
    peaks = [p.target_peak for p in predictions if p.target_peak is not None]
    full = sum(p.target_tokens for p in predictions) if len(peaks) == len(predictions) else 0
    return Metrics(
        n=len(predictions),
        scores=scores,
        nll=ratio([p.nll or 0.0 for p in forced], [p.nll_tokens for p in forced], _groups(forced)) if nll_tokens else None,
        nll_tokens=nll_tokens,
        peak_reasoning_kv=peak,
        mean_reasoning_kv=_average([p.mean_reasoning_kv for p in said]),
        peak_kv=_average([p.peak_kv for p in said]),
        mean_kv=_average([p.mean_kv for p in said]),
        peak_kv_bytes=_average([p.peak_kv_bytes for p in said]),
        max_kv_bytes=max((p.peak_kv_bytes for p in said), default=0),
        mean_kv_bytes=_average([p.mean_kv for p in said]) * kv_bytes,
        peak_reasoning_bytes=peak.mean * kv_bytes if peak else 0.0,
        mean_reasoning_bytes=_average([p.mean_reasoning_kv for p in said]) * kv_bytes,
        compressions=_average([p.compressions for p in said]),
        tokens=_average([p.tokens for p in said]),
        tokens_per_second=sum(p.tokens for p in said) / seconds if seconds else None,
        equal_length_ratio=sum(peaks) / full if full else None,
        cut_off=_average([p.reason == "length" for p in said]),
        memory_kv=mean([p.memory_kv or 0 for p in after], _groups(after)) if after else None,
        memory_bytes=_average([p.memory_bytes for p in after]),
        context_tokens=_average([p.context_tokens for p in after]),
    )


def _scored(name: str, lines: Sequence[Prediction]) -> Estimate:
    """`mae` is in points of its scale, all else between 0 and 1."""
    return (mean if name == "mae" else share)([p.scores[name] for p in lines], _groups(lines))


def _groups(lines: Sequence[Prediction]) -> list[str]:
    """Of each line; none where every item is by itself."""
    return [p.group or p.id for p in lines] if any(p.group for p in lines) else []


def versus(row: Sequence[Prediction], full: Sequence[Prediction], nothing: Sequence[Prediction] = ()) -> Versus:
    """A row against `full` (and, for the NLL gap, `nothing`), on the items that both have.

    Raises:
        ValueError: they have no item in common.
    """
    other = {p.key: p for p in full}
    pairs = [(p, other[p.key]) for p in row if p.key in other]
    if not pairs:
        raise ValueError("the rows have no item in common; evaluate them on the same data, split and seed.")
    said = [(a, b) for a, b in pairs if a.answer is not None and b.answer is not None]
    gained = sum(a.scores["correct"] > b.scores["correct"] for a, b in said)
    lost = sum(a.scores["correct"] < b.scores["correct"] for a, b in said)
    partly = any(p.scores["correct"] not in (0, 1) for pair in said for p in pair)
    lower = {p.key: p for p in nothing}
    both = [(a, b) for a, b in pairs if a.nll_tokens == b.nll_tokens]  # other tokens of a target, as another tokenizer's, compare nothing
    forced = [(a, b, a.nll, b.nll) for a, b in both if a.nll is not None and b.nll is not None]
    gap = [(a, c.nll - mine, c.nll - best) for a, _, mine, best in forced if (c := lower.get(a.key)) is not None and c.nll is not None]
    right = [(a, b.scores["correct"], c.scores["correct"]) for a, b in said if (c := lower.get(a.key)) and c.scores]
    won = [(a, a.scores["correct"] - worst, best - worst) for a, best, worst in right]
    differences = [a.scores["correct"] - b.scores["correct"] for a, b in said]
    groups = _groups([a for a, _ in said])
    return Versus(
        n=len(pairs),
        difference=_difference(differences, groups) if partly else paired_difference(differences, groups) if said else None,
        p=sign_test(differences, groups) if said and not partly else None,
        gained=gained,
        lost=lost,
        kv_ratio=_ratio([(a.peak_reasoning_kv, b.peak_reasoning_kv) for a, b in said]),
        kv_ratio_whole=_ratio([(a.peak_kv, b.peak_kv) for a, b in said]),
        nll_difference=_over([(a, mine - best, a.nll_tokens) for a, _, mine, best in forced]),
        gap_closed=_over(gap),
        accuracy_gap_closed=_over(won),
    )


def _over(parts: Sequence[tuple[Prediction, float, float]]) -> Estimate | None:
    """A ratio of two sums over these lines; none where there is nothing to divide by."""
    below = [whole for *_, whole in parts]
    return ratio([part for _, part, _ in parts], below, _groups([line for line, *_ in parts])) if sum(below) > 0 else None


def _difference(differences: Sequence[float], groups: Sequence[str]) -> Estimate:
    """Mean paired difference of scores that may lie between 0 and 1."""
    e = mean(differences, groups)
    return Estimate(e.mean, max(-1.0, e.low), min(1.0, e.high), e.n)


def plain(value: Any) -> Any:
    """A dataclass as what JSON can hold; an interval without bounds becomes null."""
    tree = asdict(value)

    def clean(x: Any) -> Any:
        if isinstance(x, dict):
            return {k: clean(v) for k, v in x.items()}
        return None if isinstance(x, float) and not math.isfinite(x) else x

    return clean(tree)


def _ratio(pairs: Sequence[tuple[float, float]]) -> float | None:
    below = sum(b for _, b in pairs)
    return sum(a for a, _ in pairs) / below if below else None


def _average(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def natural(name: str) -> tuple[bool, str, int]:
    """`correct` first, and `distance_10` after `distance_9`."""
    word, _, number = name.rpartition("_")
    return (name != "correct", word, int(number)) if number.isdigit() else (name != "correct", name, 0)
