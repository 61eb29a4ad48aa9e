"""The memory of an encoder: what later segments see of earlier ones in every layer, and what the decoder sees of them.

It is a `Memory` with one layer more, which holds the encoder's outputs, half of each as a key and half as a value. So what a boundary
frees, what pins keep and how slots average is said once: a decoder's keys and values are linear in those outputs, and their average
is the average of both.

An encoder looks both ways, so a segment is run when it is closed and not before. Text that no boundary ends waits as ids for what
comes behind it; under `full` all of it does, and is encoded anew with every question.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from context_memory.errors import InputError
from context_memory.memory import Memory, segment_of
from context_memory.plan import PAD, Tokens, layout, stack
from context_memory.schemes.base import Scheme
from context_memory.text import Segment

if TYPE_CHECKING:
    from context_memory.encoder_decoder import CompressedSeq2Seq


def in_order(tokens: Tokens) -> Tokens:
    """The same with the order of an encoder: a segment's tokens, and its comp tokens, are computed at once and see each other."""
    return Tokens(**{**vars(tokens), "index": torch.where(tokens.index < 0, -1, tokens.segment)})


def attended(scheme: Scheme, tokens: Tokens, step: Tensor, clock: Tensor) -> Tensor:
    """(b, n) the tokens that a decoder attends to, when it answers after (b, 1) `step` compressions at position `clock`: those that
    one more token of the encoder would see. It never sees a forgotten token."""
    return scheme.kept(tokens, step - 1, clock) & (tokens.kind != PAD)


@dataclass(frozen=True)
class Reading:
    """What the decoder attends to: outputs of the encoder for what is held and for the question."""

    states: Tensor
    """(b, n, hidden)"""
    seen: Tensor
    """(b, n) bool; false at padding."""
    raw: Tensor
    """(b,) how many of them are text: the question, and pins."""

    def nbytes(self) -> int:
        return self.states.untyped_storage().nbytes()


@dataclass(repr=False)
class EncoderMemory:
    """The memory of one text, or of several side by side. Reading it leaves it as it was."""

    lm: CompressedSeq2Seq
    held: Memory
    """Keys and values of every layer of the encoder, then its outputs."""
    waiting: list[list[Segment]]
    """Segments of each row that no boundary has ended yet."""

    @classmethod
    def empty(cls, lm: CompressedSeq2Seq, rows: int = 1) -> EncoderMemory:
        return cls(lm, Memory(lm, rows), [[] for _ in range(rows)])

    @torch.no_grad()
    def run(self, segments: Sequence[Sequence[Segment]]) -> None:
        """Take in segments row by row, at most one of them compressed, the last; fold where one closed."""
        joined = [list(self.lm.scheme.arrange([*before, *new])) for before, new in zip(self.waiting, segments, strict=True)]
        closed = [bool(new) and all_of[-1].compress for new, all_of in zip(segments, joined)]
        self.waiting = [[] if now else row for now, row in zip(closed, joined)]
        if any(closed):
            self.held.run([row if now else [] for now, row in zip(closed, joined)])

    def write(self, text: str | Sequence[int]) -> None:
        """Compress a segment into the memory (the same in every row). Text or token ids.

        Raises:
            ValueError: an empty segment; one more than the scheme can compress.
        """
        first = not any(self.held.raw) and not any(self.waiting)
        self.run([[segment_of(self.lm, text, first)]] * self.rows)

    @torch.no_grad()
    def read(self, questions: Sequence[Sequence[int]]) -> Reading:
        """Encode a question a row, token ids, after what is held.

        Raises:
            ValueError: an empty question; another number of questions than rows.
        """
        if len(questions) != self.rows or not all(questions):
            raise InputError(f"the memory has {self.rows} row(s) and wants a question of at least one token for each, got {questions!r}.")
        whole = [[*row, Segment(tuple(ids), compress=False, target=True)] for row, ids in zip(self.waiting, questions)]
        held, lm = self.held.fork(), self.lm
        plan = stack([layout(row, lm.scheme, lm.positions, clock=c, step=t) for row, c, t in zip(whole, held.clock, held.step)])
        clock = [c + len([*chain.from_iterable(s.ids for s in row)]) for row, c in zip(whole, held.clock)]
        held.advance(plan, clock)
        step = torch.tensor(held.step, device=lm.device)[:, None]
        tokens = held.held.map(lambda x: x[:, : held.tokens])
        states = torch.cat([held.layers[-1].keys, held.layers[-1].values], -1)[:, 0, : held.tokens].clone()
        seen = attended(lm.scheme, tokens, step, torch.tensor(clock, device=lm.device)[:, None])
        return Reading(states, seen, (seen & tokens.raw).sum(1))

    @property
    def rows(self) -> int:
        return len(self.waiting)

    @property
    def step(self) -> list[int]:
        """Compressions so far, row by row."""
        return self.held.step

    @property
    def tokens(self) -> int:
        """Entries a layer of the longest row, what waits included."""
        waits = [sum(len(s.ids) for s in row) for row in self.waiting]
        return max(n + w for n, w in zip(self.held.length, waits))

    def nbytes(self) -> int:
        """Bytes that are alive: keys, values, outputs and averages. What waits is a list of ids and weighs nothing here; the outputs
        that a decoder attends to are in `Reading.nbytes`."""
        return self.held.nbytes()

    def fork(self) -> EncoderMemory:
        """A memory with the same content that shares no storage with this one."""
        return self.pick(range(self.rows))

    def pick(self, rows: Sequence[int]) -> EncoderMemory:
        """Some of the rows, in this order, as a memory of their own."""
        return EncoderMemory(self.lm, self.held.pick(rows), [list(self.waiting[r]) for r in rows])

    @classmethod
    def batch(cls, memories: Sequence[EncoderMemory]) -> EncoderMemory:
        """Several memories of one model, of any lengths, as the rows of one."""
        waiting = [list(row) for m in memories for row in m.waiting]
        return cls(memories[0].lm, Memory.batch([m.held for m in memories]), waiting)

    def __repr__(self) -> str:
        return f"EncoderMemory({self.held!r}, waiting={[sum(len(s.ids) for s in row) for row in self.waiting]})"
