"""`<COMP>` written into solutions where a boundary policy ends a segment: rows that people can read and mend, and `data=gsm8k` reads.

A row is {question, reasoning_with_compression, answer, original_reasoning}, as in the seed family's files.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from context_memory.data._answers import digits, final_number, same
from context_memory.data.gsm8k import MARKER, uncomp
from context_memory.encode import Encoder
from context_memory.report import write_text
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


def annotate(examples: Iterable[Example], encoder: Encoder) -> Annotated:
    """Mark every place where `encoder.boundary` ends a segment of the target, up to the last one that has text behind it."""
    out = Annotated()
    for example in examples:
        text = example.prompt + example.target
        gold = example.meta.get("answer", final_number(example.target, marked=True))
        if MARKER in text or example.context or "parts" in example.meta or not same(final_number(example.target), gold):
            out.unsafe += 1
            continue
        marked = mark(example, encoder)
        if MARKER not in marked:
            out.uncut += 1
            continue
        out.cuts += marked.count(MARKER)
        out.rows.append(
            {
                "question": example.prompt,
                "reasoning_with_compression": marked,
                "answer": digits(gold),
                "original_reasoning": example.target,
            }
        )
    return out


def mark(example: Example, encoder: Encoder) -> str:
    """The target with a marker wherever the policy ends a segment that has text on both sides."""
    return insert(example.target, uncomp(insert(example.target, encoder.cuts(example)))[1])


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
