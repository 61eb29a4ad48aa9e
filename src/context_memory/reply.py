"""What an endpoint is asked to write, and which of its replies may be used: models change numbers, and markers stand in odd places.

A reply gives places only. Of a copy, the words are compared and then thrown away: its markers are carried over into the solution
itself, so no row holds a text that the data did not. A solution of the model's own (`rewrite`) has to end in the known answer.
"""

from __future__ import annotations

import itertools
import re
from typing import NamedTuple

from context_memory.annotate import gold, insert
from context_memory.boundaries.rules import calculates
from context_memory.data._answers import final_number, numbers, same
from context_memory.data.gsm8k import MARKER, uncomp
from context_memory.text import Example

STEPS = f"""Write {MARKER} after each finished step: after a finished calculation, a conclusion or a list item. Never write it \
inside an equation whose result is still to come, inside a sentence that goes on, before the first step, twice in a row, or \
after the final answer."""
COPY = f"""Below are a problem and its solution. Copy the solution word for word, all of it, its last line included. Add no word, \
number or sign, leave none out, and mend nothing, mistakes included. {STEPS}
For example "He has 3 + 4 = 7 figs. Of these 2 are bad, so 7 - 2 = 5 are good.\n#### 5" becomes
"He has 3 + 4 = 7 figs. {MARKER} Of these 2 are bad, so 7 - 2 = 5 are good. {MARKER}\n#### 5"
Reply with the copy alone."""
REWRITE = f"""Solve the problem below step by step, in short plain sentences, with every calculation written out as an equation. {STEPS}
Leave a blank or a line end behind each {MARKER}. End with a line of the form "#### 72" that holds the final number alone.
Reply with the solution alone."""

WRAPPED = re.compile(r"(?:<think>.*?</think>\s*)?(?:```[\w-]*[^\S\n]*\n(?P<fenced>.*)```|(?P<bare>.*))", re.DOTALL)
"""What some models put around a reply: their thoughts, a code fence."""
OPEN, GOES_ON = re.compile(r"[-+*/\u00d7\u00f7=(]\s*\Z"), re.compile(r"[^\S\n]+[-+*/\u00d7\u00f7=]")
"""The middle of a calculation: before a marker, and behind it on the same line."""
LINE_ENDS, SPARE = re.compile(r"\s*\n"), re.compile(rf"[^\S\n]+(?={MARKER}(?:\s|{MARKER}|\Z))")
"""White space that goes with what is before a cut, and blanks that were put before a marker in addition to the white space behind it."""


class Checked(NamedTuple):
    """The marked solution, or why there is none."""

    marked: str = ""
    fault: str = ""


def question(example: Example, rewrite: bool, fault: str = "") -> str:
    """What is sent: all in one message, since not every model knows a system role. `fault`: what was wrong with the last reply."""
    problem = f"\n\nProblem:\n{example.prompt}"
    again = f"\n\n(A reply was refused before: {fault}.)" if fault else ""
    return REWRITE + problem + again if rewrite else f"{COPY}{problem}\n\nSolution:\n{example.target}{again}"


def check(reply: str, example: Example, rewrite: bool) -> Checked:
    """Compare the reply with the example, then take over its markers."""
    found = WRAPPED.fullmatch(reply.strip())
    assert found, "the pattern takes any text"
    told = (found["bare"] if found["fenced"] is None else found["fenced"]).strip()
    plain = told.replace(MARKER, "")
    final = final_number(plain, marked=rewrite or final_number(example.target, marked=True) is not None)
    if final is None:
        return Checked(fault="no final answer")
    if not same(final, gold(example)):
        return Checked(fault="another final answer")
    if rewrite:
        text, cuts = uncomp(SPARE.sub("", told))
    elif numbers(plain) != numbers(example.target):
        return Checked(fault="other numbers")
    elif letters(plain) != letters(example.target):
        return Checked(fault="other words")
    else:
        text, cuts = example.target, carried(told, example.target)
    cuts = sound(text, cuts)
    return Checked(insert(text, cuts)) if cuts else Checked(fault="no marker at the end of a step")


def letters(text: str) -> str:
    """Everything but white space."""
    return "".join(text.split())


def carried(copy: str, text: str) -> tuple[int, ...]:
    """Where the markers of a copy stand in `text`: behind as many letters.

    >>> carried("1 + 1 = 2.<COMP>\\n\\nSo 2.", "1 + 1 = 2. So 2.")
    (10,)
    """
    ends = [0, *(m.end() for m in re.finditer(r"\S", text))]
    return tuple(ends[n] for n in itertools.accumulate(len(letters(piece)) for piece in copy.split(MARKER)[:-1]))


def sound(text: str, cuts: tuple[int, ...]) -> tuple[int, ...]:
    """The cuts at which a step may end. Line ends go with what is before them, as boundary policies have it. A cut is dropped within
    a word, within a calculation, behind the final answer, and where there is nothing to compress.

    >>> sound("1 + 1 = 2.\\nSo 2.\\n#### 2", (0, 3, 7, 8, 10, 10, 17, 23))
    (11, 17)
    """
    out, start = [], 0
    last = text.rfind("####") if "####" in text else len(text.rstrip()) - 1
    for cut in cuts:
        if line := LINE_ENDS.match(text, cut):
            cut = line.end()
        before, behind = text[start:cut], text[cut:]
        if cut > last or not before.strip() or not (before[-1].isspace() or behind[:1].isspace()):
            continue
        if OPEN.search(before) or calculates(before) is False or (not before.endswith("\n") and GOES_ON.match(behind)):
            continue
        out.append(cut)
        start = cut
    return tuple(out)
