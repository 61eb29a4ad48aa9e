"""How well a head tells boundaries from other tokens, and how it is taught to (`boundary=classifier`).

What it learns from: the hidden states of solutions that are run as they will be decoded, compressed at the boundaries that a policy or an
annotator put there; every token is an example, those that end a segment are the positive ones. Problems, not tokens, are divided
80/10/10, so that no problem is in two parts.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import Progress
from torch import Tensor

from context_memory import cutting
from context_memory.boundaries.rules import Rules, calculates
from context_memory.encode import Encoder
from context_memory.errors import UserError
from context_memory.head import Head
from context_memory.intervals import Estimate, bootstrap
from context_memory.model import CompressedLM
from context_memory.text import Example

TAUS = tuple(i / 20 for i in range(1, 20))
PARTS = {"train": 0.8, "validation": 0.1, "test": 0.1}


@dataclass(frozen=True)
class Told:
    """The tokens of some solutions."""

    hidden: Tensor
    """(n, hidden) last hidden states."""
    ends: Tensor
    """(n,) bool: a segment ends with this token."""
    problem: Tensor
    """(n,) which problem."""
    follows: tuple[str, ...]
    """Of each token, what a boundary behind it would follow: a `calculation`, a `conclusion`, `something else`."""

    def part(self, where: Tensor) -> Told:
        """Some of the tokens."""
        kept = where.nonzero()[:, 0].tolist()
        return Told(self.hidden[where], self.ends[where], self.problem[where], tuple(self.follows[i] for i in kept))


@dataclass(frozen=True)
class Quality:
    """A head at one threshold."""

    tau: float
    precision: float
    recall: float
    f1: float
    rate: float
    """Share of the tokens that it calls a boundary."""


def collect(lm: CompressedLM, encoder: Encoder, examples: Sequence[Example], progress: Progress | None = None) -> Told:
    """Run the solutions, compressed where the encoder's policy (or their own cuts) end a segment.

    Raises:
        UserError: the policy needs what is to be learnt here, or never ends a segment.
    """
    lm.family.must_be_causal("a boundary classifier")
    if encoder.mark or (encoder.boundary.needs_hidden and not all(e.cuts for e in examples)):
        raise UserError("a classifier is taught by a policy that goes by the text, boundary=rules or another, or by annotated solutions.")
    states, ends, problem, follows, numbers = [], [], [], list[str](), dict[str, int]()
    task = progress.add_task("hidden states", total=len(examples), speed="") if progress else None
    for example in examples:
        number = numbers.setdefault(example.prompt, len(numbers))  # all solutions of a problem are in one part
        segments = cutting.segments(lm, encoder, example)
        ids = encoder.answer(example)
        if lm.max_positions < sum(len(s.ids) for s in segments) + 2 * lm.scheme.n_comp * len(segments) or not ids:
            continue
        closed = torch.zeros(len(ids), dtype=torch.bool)
        closed[[edge - 1 for edge in cutting.edges(segments)]] = True
        states.append(cutting.answer_states(lm, segments, len(ids)).float().cpu())
        ends.append(closed)
        problem += [number] * len(ids)
        follows += _followed(ids, closed.tolist(), encoder)
        if progress and task is not None:
            progress.update(task, advance=1)
    if not states or not any(bool(e.any()) for e in ends):
        raise UserError(f"no segment ends in any of {len(examples)} solutions: there is nothing to learn; use another boundary=.")
    return Told(torch.cat(states), torch.cat(ends), torch.tensor(problem), tuple(follows))


def _followed(ids: Sequence[int], closed: Sequence[bool], encoder: Encoder) -> list[str]:
    """What stands before each token's end, in its segment and clause."""
    out, text, rules = [], "", Rules()
    for token, end in zip(ids, closed):
        text += encoder.piece(token)
        out.append("calculation" if calculates(text) else "conclusion" if rules.concludes(text) else "something else")
        text = "" if end else text
    return out


def divide(told: Told, seed: int = 0) -> dict[str, Told]:
    """Train, validation and test: every problem in one of them.

    Raises:
        UserError: too few problems for three parts.
    """
    return {name: told.part(where) for name, where in division(told.problem, seed).items()}


def division(problem: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """(n,) bool for each part: whether a token's problem is in it.

    Raises:
        UserError: too few problems for three parts.
    """
    problems = sorted(set(problem.tolist()))
    if len(problems) < 10:
        raise UserError(f"{len(problems)} problems are too few to divide into three parts; give at least 10.")
    random.Random(seed).shuffle(problems)
    out, start = {}, 0
    for i, (name, share) in enumerate(PARTS.items()):
        end = len(problems) if i == len(PARTS) - 1 else start + round(share * len(problems))
        out[name] = torch.isin(problem, torch.tensor(problems[start:end]))
        start = end
    return out


@torch.inference_mode()
def best_tau(head: Head, told: Told) -> float:
    """The threshold of the highest F1; to be found on other problems than those that the head is judged by."""
    scores = head(told.hidden).sigmoid()
    return max(TAUS, key=lambda tau: quality(scores, told.ends, tau).f1)


@torch.inference_mode()
def judge(head: Head, told: Told, tau: float) -> dict[str, Any]:
    """AUC, the curve over tau, and at one threshold that was chosen before how well it tells and what its boundaries follow, beside those
    of the labels. The 95 % intervals draw whole problems."""
    scores = head(told.hidden).sigmoid()
    chosen = (scores >= tau).tolist()
    area, f1 = area_of(scores, told), f1_of(scores, told, tau)
    return {
        "tokens": len(told.ends),
        "boundaries": int(told.ends.sum()),
        "problems": len(told.problem.unique()),
        "auc": area.mean,
        "auc_interval": [area.low, area.high],
        "tau": tau,
        "chosen": asdict(quality(scores, told.ends, tau)) | {"f1_interval": [f1.low, f1.high]},
        "curve": [asdict(quality(scores, told.ends, t)) for t in TAUS],
        "follows": _shares([f for f, c in zip(told.follows, chosen) if c]),
        "follows_labels": _shares([f for f, c in zip(told.follows, told.ends.tolist()) if c]),
    }


def quality(scores: Tensor, ends: Tensor, tau: float) -> Quality:
    """Precision, recall and F1 of (n,) scores at one threshold; 0 where nothing can be divided by.

    >>> quality(torch.tensor([0.9, 0.8, 0.2, 0.1]), torch.tensor([True, False, True, False]), 0.5)
    Quality(tau=0.5, precision=0.5, recall=0.5, f1=0.5, rate=0.5)
    """
    called = scores >= tau
    hits = float((called & ends).sum())
    precision, recall = hits / max(1.0, float(called.sum())), hits / max(1.0, float(ends.sum()))
    return Quality(tau, precision, recall, 2 * precision * recall / max(1e-12, precision + recall), float(called.float().mean()))


def area_of(scores: Tensor, told: Told) -> Estimate:
    """Area under the ROC curve: how often a boundary has the higher score of a pair (ties count half); NaN with one kind alone.

    >>> ends = torch.tensor([True, True, False, False])
    >>> area_of(torch.tensor([0.9, 0.4, 0.4, 0.1]), Told(torch.empty(4, 0), ends, torch.arange(4), ("",) * 4)).mean
    0.875
    """
    levels, level = np.unique(scores.numpy(), return_inverse=True)
    ends = told.ends.numpy()

    def area(weights: NDArray[np.float64]) -> float:
        positive, negative = (np.bincount(level, weights * which, len(levels)) for which in (ends, ~ends))
        pairs = positive.sum() * negative.sum()
        return float((positive * (negative.cumsum() - negative / 2)).sum() / pairs) if pairs else float("nan")

    return bootstrap(area, len(ends), told.problem.tolist())


def f1_of(scores: Tensor, told: Told, tau: float) -> Estimate:
    """F1 at one threshold."""
    called, ends = (scores >= tau).numpy(), told.ends.numpy()

    def f1(weights: NDArray[np.float64]) -> float:
        return float(2 * weights[called & ends].sum() / max(1.0, weights[called].sum() + weights[ends].sum()))

    return bootstrap(f1, len(ends), told.problem.tolist())


def _shares(kinds: Sequence[str]) -> dict[str, float]:
    counts = Counter(kinds)
    return {kind: counts[kind] / max(1, len(kinds)) for kind in ("calculation", "conclusion", "something else")}
