"""Which tokens later steps would gain most from seeing: the labels that `pins=learned` is taught with.

The solution is run compressed, with one thing more: tokens that are forgotten stay faintly in view, at a weight that one number a
token raises or lowers in every layer and head alike. The gradient of the negative log-likelihood with respect to that number, taken
once, says how much the rest of the solution gains from each token beside what its comp tokens hold already. (First order: tokens are
judged one by one.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from rich.progress import Progress
from torch import Tensor

from context_memory import cutting, plugins
from context_memory.encode import Encoder
from context_memory.errors import UserError
from context_memory.gate import Gate
from context_memory.head import Head
from context_memory.loss import cross_entropy
from context_memory.model import CompressedLM
from context_memory.pins.base import Piece, Pin
from context_memory.plan import IGNORE, Plan, layout, visible
from context_memory.text import Example, Segment

FAINT = -3.0
"""Added to the attention logits of what is forgotten: seen, at a twentieth of the weight."""


@dataclass(frozen=True)
class Gains:
    """The tokens of the closed segments of some solutions."""

    hidden: Tensor
    """(n, hidden) last hidden states."""
    gain: Tensor
    """(n,) nats, to first order, that the rest of the solution gains from seeing the token; below 0, it would mislead."""
    segment: Tensor
    """(n,) which segment, counted through all solutions."""
    problem: Tensor
    """(n,) which problem."""
    ids: Tensor
    """(n,) token ids."""

    def best(self, budget: int) -> Tensor:
        """(n,) bool: the `budget` tokens of each segment that are worth most, if they are worth anything."""
        return top(self.gain, self.segment, budget) & (self.gain > 0)

    def part(self, where: Tensor) -> Gains:
        """Some of the tokens."""
        return Gains(*(getattr(self, name)[where] for name in self.__dataclass_fields__))


def top(scores: Tensor, group: Tensor, budget: int) -> Tensor:
    """(n,) bool: the `budget` highest of every group.

    >>> top(torch.tensor([0.1, 0.9, 0.5, 0.2]), torch.tensor([0, 0, 0, 1]), 2)
    tensor([False,  True,  True,  True])
    """
    order = scores.argsort(descending=True, stable=True)
    order = order[group[order].argsort(stable=True)]  # by group, the highest first
    start = torch.ones(len(order), dtype=torch.bool)
    start[1:] = group[order][1:] != group[order][:-1]
    at = torch.arange(len(order))
    rank = at - torch.where(start, at, 0).cummax(0).values
    out = torch.zeros(len(order), dtype=torch.bool)
    out[order[rank < budget]] = True
    return out


def gains(lm: CompressedLM, whole: Sequence[Segment]) -> Tensor:
    """(raw tokens,) for each how much the labelled tokens gain from it, in nats, to first order; 0 for what nobody has forgotten.

    Raises:
        UserError: a scheme whose slots are sums (no one token stays in view), or a model that slides a window.
    """
    if lm.scheme.mixes or not lm.scheme.static or lm.family.windowed(lm.base.config):
        raise UserError("pins are learnt with scheme=concat, on models without a sliding window: elsewhere no single token can be shown.")
    plan = layout(whole, lm.scheme, lm.positions).to(lm.device)
    weight = torch.full((plan.shape[1],), FAINT, dtype=lm.base.dtype, device=lm.device, requires_grad=True)
    (slope,) = torch.autograd.grad(shown(lm, plan, weight), weight)
    return -slope[plan.tokens.raw[0]]


def shown(lm: CompressedLM, plan: Plan, weight: Tensor) -> Tensor:
    """The negative log-likelihood of a plan (b = 1) where (n,) `weight` is added to the attention logits of what is forgotten."""
    t, dtype = plan.tokens, lm.base.dtype
    q, k = t.map(lambda x: x[:, :, None]), t.map(lambda x: x[:, None, :])
    seen = visible(lm.scheme, q, k)
    forgotten = (k.index <= q.index) & k.raw & q.raw & ~seen
    mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)
    mask = torch.where(forgotten, weight, mask)[:, None]
    embedded = lm.comp(lm.family.embed(lm.base, plan.ids), plan).detach()
    extra = {"lora_gate": Gate(plan.gate())} if lm.peft is not None else {}
    out = lm.family.decoder(lm.base)(
        inputs_embeds=embedded, attention_mask=mask, position_ids=t.position, use_cache=False, **extra
    ).last_hidden_state
    where = plan.labels != IGNORE
    return cross_entropy(out[where], plan.labels[where], lm.logits, int(lm.base.config.vocab_size))


def collect(lm: CompressedLM, encoder: Encoder, examples: Sequence[Example], progress: Progress | None = None) -> Gains:
    """The gains of all tokens of closed segments of the answers.

    Raises:
        UserError: no segment ends in any of the examples; see also `gains`.
    """
    lm.family.must_be_causal("pins=learned")
    found: list[tuple[Tensor, ...]] = []
    task = progress.add_task("gradients", total=len(examples), speed="") if progress else None
    segments = 0
    numbers: dict[str, int] = {}
    for example in examples:
        number = numbers.setdefault(example.prompt, len(numbers))  # all solutions of a problem are in one part
        whole = cutting.segments(lm, encoder, example)
        given = sum(len(s.ids) for s in whole if not s.target)
        closed = [s for s in whole if s.target and s.compress]
        n = sum(len(s.ids) for s in closed)
        if n:
            gain = gains(lm, whole)[given : given + n].float().cpu()
            states = cutting.answer_states(lm, whole, n).float().cpu()
            which = torch.tensor([segments + i for i, s in enumerate(closed) for _ in s.ids])
            ids = torch.tensor([token for s in closed for token in s.ids])
            found.append((states, gain, which, torch.full((n,), number), ids))
            segments += len(closed)
        if progress and task is not None:
            progress.update(task, advance=1)
    if not found:
        raise UserError(f"no segment ends in any of {len(examples)} solutions: nothing is forgotten there; use another boundary=.")
    return Gains(*(torch.cat(x) for x in zip(*found, strict=True)))


def compare(head: Head, found: Gains, encoder: Encoder, budget: int) -> dict[str, tuple[float, float]]:
    """For the head, the rules and chance: the share of the gain that they keep with `budget` tokens a segment, and how many they take."""
    with torch.inference_mode():
        kept = {"best possible": found.best(budget), "learned": top(head(found.hidden), found.segment, budget)}
    for name in ("conclusions", "numbers", "results"):
        rule: Pin = plugins.make("pins", name, budget=budget)  # type: ignore[assignment]
        flags = torch.zeros(len(found.ids), dtype=torch.bool)
        for s in found.segment.unique():
            at = (found.segment == s).nonzero()[:, 0]
            ids = found.ids[at].tolist()
            flags[at[sorted(rule.keeps(Piece(ids, [encoder.piece(i) for i in ids])))]] = True
        kept[name] = flags
    chance = torch.rand(len(found.ids), generator=torch.Generator().manual_seed(0))
    kept["chance"] = top(chance, found.segment, budget)
    segments = len(found.segment.unique())
    return {name: (captured(found.gain, k), float(k.sum()) / segments) for name, k in kept.items()}


def captured(gain: Tensor, kept: Tensor) -> float:
    """Share of all that could be gained (the sum of positive gains) that the kept tokens bring; those that mislead count against it."""
    return float(gain[kept].sum() / gain.clamp(min=0).sum().clamp(min=1e-12))
