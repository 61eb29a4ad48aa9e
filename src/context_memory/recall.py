"""Which numbers of its own answer a model can still read back from its memory, so that a lost number is told from wrong arithmetic.

The memory of prompt and answer is made as decoding makes it. Then every line of the answer but the last is begun again, with its own
words, and before each of its numbers the model is asked to go on: greedily, it says that number or another. A sum can be worked
out anew and a pinned question still shows its numbers, so the scale is that of the rows `full` and `nothing`, not 0 to 100 %.
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
from context_memory.pins.base import Piece
from context_memory.text import Example, Segment, runs


class Recalled(NamedTuple):
    """A number of an answer, and whether its memory gives it back."""

    number: str
    known: bool
    """Every token of it is the likeliest."""
    p: float
    """The probability of the number after the beginning of its line."""


def recall(lm: CompressedLM, encoder: Encoder, examples: Sequence[Example], answers: Sequence[str]) -> list[list[Recalled]]:
    """For each answer its numbers in order, the last line's left out (it is said when nothing has been forgotten since)."""
    said = [
        as_fed(cutting.segments(lm, encoder, replace(e, target=answer, cuts=())), encoder) for e, answer in zip(examples, answers)
    ]
    memory = remembered(lm, said)
    return [_asked(lm, encoder, memory, row, segments) for row, segments in enumerate(said)]


@torch.inference_mode()
def remembered(lm: CompressedLM, texts: Sequence[Sequence[Segment]]) -> Memory:
    """The memory of several texts, a row each."""
    memory = lm.memory(len(texts))
    turns = [runs(segments) for segments in texts]
    for i in range(max(map(len, turns))):
        memory.run([t[i] if i < len(t) else [] for t in turns])
    return memory


@torch.inference_mode()
def _asked(lm: CompressedLM, encoder: Encoder, memory: Memory, row: int, said: Sequence[Segment]) -> list[Recalled]:
    """Begin every line again, each in a copy of the row."""
    answer = [token for s in said if s.target for token in s.ids]
    probes = [probe for line in list(_lines(answer, encoder))[:-1] if (probe := _Probe.of(line, encoder)).numbers]
    if not probes:
        return []
    copies = memory.pick([row] * len(probes))
    hidden = copies.run([[Segment(p.ids, compress=False, target=True)] for p in probes])
    out = []
    for states, probe in zip(hidden, probes):
        for tokens in probe.numbers:
            chances = lm.logits(states[[t - 1 for t in tokens]]).float().log_softmax(-1)
            wanted = torch.tensor([probe.ids[t] for t in tokens], device=chances.device)
            p = float(chances.gather(1, wanted[:, None]).sum().exp())
            number = "".join(encoder.piece(probe.ids[t]) for t in tokens).strip()
            out.append(Recalled(number, bool((chances.argmax(-1) == wanted).all()), p))
    return out


class _Probe(NamedTuple):
    ids: tuple[int, ...]
    numbers: list[list[int]]
    """The tokens of each number."""

    @classmethod
    def of(cls, line: Sequence[int], encoder: Encoder) -> _Probe:
        """A line of its own, so after a line end."""
        ids = (*encoder.ids("\n"), *line)
        return cls(ids, Piece(ids, [encoder.piece(i) for i in ids]).numbers())


def _lines(ids: Sequence[int], encoder: Encoder) -> Iterator[list[int]]:
    """The tokens of every line that is not blank; the line end belongs to none."""
    ends = [i for i, token in enumerate(ids) if "\n" in encoder.piece(token)]
    for a, b in itertools.pairwise([-1, *ends, len(ids)]):
        if encoder.text(line := list(ids[a + 1 : b])).strip():
            yield line
