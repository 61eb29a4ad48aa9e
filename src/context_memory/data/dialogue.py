"""Conversations: the segments are turns, and the next turn is the answer.

Kim et al., ICLR 2024, section 4 (DailyDialog, SODA). Any .jsonl of rows {"dialog": [turn, ...]} (or "dialogue", "turns") or {"messages":
[{role, content}, ...]}, which is split by the text of its conversations, or folders of files (`soda/train.jsonl`); `soda` (CC BY 4.0)
and `dailydialog` (non-commercial) come from the hub where there is no such file.

A window of `turns` turns and the one after it is one example: all but the last of them are memory, each learnt as well, the last is
read verbatim. A test split takes the *first* window of every conversation that is long enough, so that with `evaluation.depths`
the same answers are asked for at every number of turns in memory and only the memory changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from context_memory.data._conversations import Conversations
from context_memory.data._rouge import rouge_l, said
from context_memory.text import Example


def example(turns: Sequence[str], id: str) -> Example:
    """All but the last two turns are the context."""
    *context, prompt, target = turns
    return Example(prompt, target, tuple(context), learn=(0,) * len(context), turns=True, id=id)


@dataclass(frozen=True)
class Dialogue(Conversations):
    turns: int = 13
    """Turns before the answer; the memory holds all but the last of them."""

    samples: ClassVar[tuple[Example, ...]] = (
        example(("Do you like films?", "I do. Mostly old ones.", "Which one did you see last?", "Metropolis, at the open air."), "a"),
        example(("We moved to Oslo.", "How is it there?", "Cold, and the light is lovely.", "I must visit you in June."), "b"),
        example(("My dog ate the cake.", "All of it?", "Every crumb. He sleeps now."), "c"),
    )  # fmt: skip

    def __post_init__(self) -> None:
        if self.turns < 2:
            raise ValueError(f"turns must be at least 2, one in memory and one to answer, got {self.turns}.")

    def examples(self, split: str) -> Sequence[Example]:
        least, advice = (self.turns + 1, "lower data.turns") if split == "test" else (3, "give longer ones")
        out: list[Example] = []
        for i, turns in enumerate(self.read(split, least, advice)):
            n, name = self.turns + 1, f"{self.corpus}/{split}/{i}"
            if split == "test":
                out += [example(turns[:n], name)] if len(turns) >= n else []
            else:
                out += [example(turns[a : a + n], f"{name}/{a}") for a in range(0, max(1, len(turns) - 3), self.turns) if len(turns) > 2]
        return out

    def score(self, example: Example, answer: str) -> dict[str, float]:
        return {"correct": float(said(answer) == said(example.target)), "rouge_l": rouge_l(example.target, answer)}
