"""`<COMP>` written into solutions where a boundary policy ends a segment: rows that people can read and mend, and `data=gsm8k` reads.

A row is {question, reasoning_with_compression, answer, original_reasoning}, as in the seed family's files.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from context_memory.atomic import write_text
from context_memory.data._answers import digits, final_number, same
from context_memory.data.gsm8k import MARKER, uncomp
from context_memory.text import Example

Row = dict[str, str]


@dataclass
class Annotated:
    """Rows, and what was left out."""

    rows: list[Row] = field(default_factory=list)
    cuts: int = 0
    unsafe: int = 0
    """Examples that a row could not give back: the text holds the marker itself, there is a context, there are several problems, or
    no final number, or one that is not the right answer."""
    uncut: int = 0
    """Examples in which no segment ends."""


def annotate(examples: Iterable[Example], places: Callable[[Example], Sequence[int]]) -> Annotated:
    """Mark the places of every example (offsets in the target, in characters) that have text on both sides.

    Args:
        places: as `Encoder.cuts`, where a policy ends a segment, or `Oracle.cuts`.
    """
    out = Annotated()
    for example in examples:
        if not readable(example):
            out.unsafe += 1
            continue
        marked = mark(example, places(example))
        if MARKER not in marked:
            out.uncut += 1
            continue
        out.cuts += marked.count(MARKER)
        out.rows.append(row(example, marked))
    return out


def readable(example: Example) -> bool:
    """Whether a row can give the example back."""
    plain = MARKER not in example.prompt + example.target and not example.context and "parts" not in example.meta
    return plain and same(final_number(example.target), gold(example))


def gold(example: Example) -> float | None:
    """The right answer, as far as it is known."""
    return example.meta.get("answer", final_number(example.target, marked=True))


def row(example: Example, marked: str) -> Row:
    """What is written of an example whose solution, with markers, is `marked`."""
    right = gold(example)
    assert right is not None, "not a readable example"
    return {
        "question": example.prompt,
        "reasoning_with_compression": marked,
        "answer": digits(right),
        "original_reasoning": example.target,
    }


def mark(example: Example, places: Sequence[int]) -> str:
    """The target with a marker at every place that has text on both sides."""
    return insert(example.target, uncomp(insert(example.target, places))[1])


def insert(text: str, cuts: Sequence[int]) -> str:
    """The inverse of `uncomp`.

    >>> insert("1 + 1 = 2. So 2.", (10,))
    '1 + 1 = 2.<COMP> So 2.'
    """
    return MARKER.join(text[a:b] for a, b in itertools.pairwise((0, *cuts, len(text))))


def write(rows: Sequence[Row], path: Path) -> None:
    """A .json file holds a list, a .jsonl file a row a line; written whole or not at all."""
    if path.suffix == ".json":
        write_text(path, json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    else:
        write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
