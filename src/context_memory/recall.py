"""Which numbers of its own answer a model can still read back from its memory, so that a lost number is told from wrong arithmetic.

The memory of prompt and answer is made as decoding makes it. Then every line of the answer is begun again, with its own words, and the
model is asked for the numbers that only the memory can give: those that an earlier line said, and neither the question nor this
line so far. Greedily, it goes on with that number or with another. A model that repeats itself unwillingly says another as well, so the
scale is that of the rows `full` and `nothing`, not 0 to 100 %.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from context_memory import cutting
from context_memory.encode import Encoder
from context_memory.footprint import as_fed
from context_memory.memory import Memory
from context_memory.model import CompressedLM
from context_memory.pins.base import NUMBER, Piece
from context_memory.text import Example, Segment


class Recalled(NamedTuple):
    """A number of an answer, and whether its memory gives it back."""

    number: str
    known: bool
    """Every token of it is the likeliest."""
    p: float
    """The probability of the number after the beginning of its line."""


def recall(lm: CompressedLM, encoder: Encoder, examples: Sequence[Example], answers: Sequence[str]) -> list[list[Recalled]]:
    """For each answer, in order, the numbers that a line takes from an earlier one."""
    said = [as_fed(cutting.segments(lm, encoder, replace(e, target=answer, cuts=())), encoder) for e, answer in zip(examples, answers)]
    memory = _remembered(lm, said)
    return [_asked(lm, encoder, memory, row, e.prompt, segments) for row, (e, segments) in enumerate(zip(examples, said))]


@torch.inference_mode()
def _remembered(lm: CompressedLM, texts: Sequence[Sequence[Segment]]) -> Memory:
    """The memory of several texts, a row each."""
    memory = lm.memory(len(texts))
    for _ in memory.follow(texts):
        pass
    return memory


@torch.inference_mode()
def _asked(lm: CompressedLM, encoder: Encoder, memory: Memory, row: int, prompt: str, said: Sequence[Segment]) -> list[Recalled]:
    """Begin every line again, each in a copy of the row."""
    answer = [token for s in said if s.target for token in s.ids]
    probes = list(_probes(answer, prompt, encoder))
    if not probes:
        return []
    copies = memory.pick([row] * len(probes))
    hidden = copies.run([[Segment(p.ids, compress=False, target=True)] for p in probes])
    out = []
    for states, probe in zip(hidden, probes):
        for number, tokens in probe.numbers.items():
            chances = lm.logits(states[[t - 1 for t in tokens]]).float().log_softmax(-1)
            wanted = torch.tensor([probe.ids[t] for t in tokens], device=chances.device)
            p = float(chances.gather(1, wanted[:, None]).sum().exp())
            out.append(Recalled(number, bool((chances.argmax(-1) == wanted).all()), p))
    return out


class _Probe(NamedTuple):
    ids: tuple[int, ...]
    """A line, after a line end."""
    numbers: dict[str, list[int]]
    """The tokens of the numbers to be asked for, each where the line says it first."""


def _probes(answer: Sequence[int], prompt: str, encoder: Encoder) -> Iterator[_Probe]:
    """The lines that take a number from an earlier one."""
    given, earlier = {n.replace(",", "") for n in NUMBER.findall(prompt)}, set[str]()
    for line in _lines(answer, encoder):
        ids = (*encoder.ids("\n"), *line)
        said: dict[str, list[int]] = {}
        for number, tokens in Piece(ids, [encoder.piece(i) for i in ids]).figures():
            said.setdefault(number, tokens)
        if wanted := {number: tokens for number, tokens in said.items() if number in earlier - given}:
            yield _Probe(ids, wanted)
        earlier |= said.keys()


def _lines(ids: Sequence[int], encoder: Encoder) -> Iterator[list[int]]:
    """The tokens of every line that is not blank; the line end belongs to none."""
    ends = [i for i, token in enumerate(ids) if "\n" in encoder.piece(token)]
    for a, b in itertools.pairwise([-1, *ends, len(ids)]):
        if encoder.text(line := list(ids[a + 1 : b])).strip():
            yield line
