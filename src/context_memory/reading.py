"""What a model makes of given texts after a memory: likelihoods, and with them the choice among options.

Items that share a context share its memory: it is written once, its size is measured, every question is read in a copy of it, and
every option in a copy of that. So a set of demonstrations costs the same for one query as for fifty, a query for two options as for
ten, and what is read is what a user's model would read: a memory with the rest really freed. (That this is the one masked pass of
training is the central law.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from context_memory.encode import Encoder
from context_memory.errors import InputError
from context_memory.footprint import as_fed
from context_memory.loss import cross_entropy
from context_memory.memory import Memory
from context_memory.model import CompressedLM
from context_memory.plan import IGNORE, Plan, layout, stack
from context_memory.text import Example, Segment


@dataclass(frozen=True)
class Reading:
    """One item, read."""

    nll: tuple[float, ...]
    """Of the target or of every option, a sum over the tokens of its text (and not of the one that ends the turn: a model that was
    not trained for this data ends its answers in its own way)."""
    tokens: tuple[int, ...]
    entries: int = 0
    """A layer, held when the question came."""
    nbytes: int = 0
    """Live keys and values then: this row's share of its batch, padding included."""
    context_tokens: int = 0
    """Raw tokens that the memory had read by then."""

    @property
    def choice(self) -> int:
        """The option with the least NLL a token, as in MetaICL."""
        return min(range(len(self.nll)), key=lambda i: self.nll[i] / self.tokens[i])


@torch.inference_mode()
def read(lm: CompressedLM, encoder: Encoder, examples: Sequence[Example], batch_size: int) -> list[Reading]:
    """Every target, or every option of those that have some, after the memory of its context.

    Args:
        batch_size: texts that are read at once.

    Raises:
        InputError: a text to read has no tokens.
    """
    contexts = list(dict.fromkeys((e.context, e.running, e.turns) for e in examples))
    home = {context: row for row, context in enumerate(contexts)}
    shown = [next(e for e in examples if (e.context, e.running, e.turns) == c) for c in contexts]
    memory = lm.memory(len(contexts))
    arranged = [lm.scheme.arrange(encoder.prompt(e)[: len(e.context)]) for e in shown]
    last = _ends(memory, arranged, lm.base.get_input_embeddings().weight.new_zeros(len(contexts), lm.base.config.hidden_size))
    share, out = memory.nbytes() // memory.rows, list[Reading]()
    for start in range(0, len(examples), batch_size):
        asked = examples[start : start + batch_size]
        rows = [home[e.context, e.running, e.turns] for e in asked]
        sums = _answers(lm, encoder, memory.pick(rows), last[rows], asked, batch_size)
        for row, pairs in zip(rows, sums):
            nll, tokens = zip(*pairs)
            out.append(Reading(nll, tokens, memory.length[row], share, memory.raw[row]))
    return out


def _answers(
    lm: CompressedLM, encoder: Encoder, memory: Memory, last: Tensor, examples: Sequence[Example], batch_size: int
) -> list[list[tuple[float, int]]]:
    """For each row, whose question is read once, what its answers come to; the memory goes on."""
    questions = [encoder.asked(e.prompt, not e.context, e.running) for e in examples]
    last = _ends(memory, [[s for s in q if s.ids or s.compress] for q in questions], last)  # a running text has none
    said = [(row, replace(e, target=text)) for row, e in enumerate(examples) for text in e.options or (e.target,)]
    sums: list[list[tuple[float, int]]] = [[] for _ in examples]
    for start in range(0, len(said), batch_size):
        part = said[start : start + batch_size]
        rows = [row for row, _ in part]
        bare = [encoder.segments(replace(e, context=(), learn=())) for _, e in part]  # the context is read: no need to tokenise it again
        tails = [as_fed(segments, encoder)[len(questions[row]) :] for row, segments in zip(rows, bare)]
        for (row, e), one in zip(part, _likelihoods(lm, memory.pick(rows), last[rows], tails)):
            if not one[1]:
                what = "option" if e.options else "answer"
                raise InputError(f"{what} {e.target!r} of example '{e.id}' has no tokens; write some text, or leave it out.")
            sums[row].append(one)
    return sums


def _ends(memory: Memory, texts: Sequence[Sequence[Segment]], last: Tensor) -> Tensor:
    """Run a text a row; (rows, hidden) states of the last raw tokens, those of `last` where there is none."""
    last = last.clone()
    for now, hidden in memory.follow(texts):
        for row, segments in enumerate(now):
            if n := sum(len(s.ids) for s in segments):
                last[row] = hidden[row, n - 1]
    return last


def _likelihoods(lm: CompressedLM, memory: Memory, last: Tensor, texts: Sequence[Sequence[Segment]]) -> list[tuple[float, int]]:
    """For each row the sum of -log p over what is learnt of its text, and how many tokens that is; the memory goes on."""
    states, vocabulary = [last[row : row + 1] for row in range(len(texts))], int(lm.base.config.vocab_size)
    for now, hidden in memory.follow(texts):
        states = [torch.cat([s, hidden[row, : sum(len(x.ids) for x in now[row])]]) for row, s in enumerate(states)]
    out = []
    for row, segments in enumerate(texts):  # state j has read j tokens, so it predicts the token after them
        learnt = torch.tensor([x for s in segments for x in s.loss or (False,) * len(s.ids)], dtype=torch.bool, device=lm.device)
        ids = torch.tensor([token for s in segments for token in s.ids], dtype=torch.long, device=lm.device)
        nll = cross_entropy(states[row][:-1][learnt], ids[learnt], lm.logits, vocabulary)
        out.append((float(nll), int(learnt.sum())))
    return out


@torch.inference_mode()
def likelihoods(lm: CompressedLM, plans: Sequence[Plan]) -> list[tuple[float, int]]:
    """For each plan (b = 1): the sum of -log p over its labelled tokens, and how many they are. One masked pass for all."""
    plan = stack(plans).to(lm.device)
    hidden = lm.hidden(plan)
    where = plan.labels != IGNORE
    vocabulary = int(lm.base.config.vocab_size)
    sums = [cross_entropy(h[w], labels[w], lm.logits, vocabulary) for h, w, labels in zip(hidden, where, plan.labels)]
    return [(float(nll), int(n)) for nll, n in zip(sums, where.sum(1))]


def target_plan(lm: CompressedLM, segments: Sequence[Segment]) -> Plan:
    """A whole example laid out with labels on its target alone."""
    return layout([s if s.target else replace(s, loss=()) for s in segments], lm.scheme, lm.positions)
