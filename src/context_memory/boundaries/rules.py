"""A segment ends where a thought does: after a finished calculation, a conclusion, a list item, or LaTeX maths.

Only there: other sentences go on with the next, and nothing is cut within an equation whose right-hand side is still to come.
What follows is not known yet, so punctuation right behind a digit (a decimal point, a thousands separator) ends nothing.

>>> words = "Ann_ has_ figs_._ 3_ +_ 4_ =_ 7_ figs_,_ so_ she_ has_ seven_._\\n_Who_?".split("_")
>>> ["".join(words[i] for i in part) for part in Rules(min_segment=2).split(range(len(words)), words.__getitem__)]
['Ann has figs. 3 + 4 = 7 figs,', ' so she has seven.', '\\nWho?']
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from context_memory.boundaries.base import Boundary, Step

NUMBER = re.compile(r"\s*[-(]?[$€£]?\s*[-(]?\d[\d.,]*")
"""What stands behind the sign of an equation that is worked out."""
OPERATION = re.compile(r"^\s*[-+*/\u00d7\u00f7x]\s*[$€£(]?\d|(?:[+*/\u00d7\u00f7(]|\s-)$")
"""What is behind that number where it is not, as in `= 48 + 24`."""
MATHS = ((r"\[", r"\]"), (r"\(", r"\)"), ("$$", "$$"))
CLOSED = re.compile(r"(?:\\[\])]|(?<=[^\s$])\$|\$\$|[ \n.,;:])+$")
"""What may stand behind an equation: the end of maths, and punctuation."""
DOLLARS = re.compile(r"(?<![$\\])\$(?=\S)[^$\n]*[=\\][^$\n]*[^\s$\\]\$$")
"""`$x = 7$` at the end of a text: maths, since it has an equation or a command in it, and no amounts of money."""


@dataclass(frozen=True)
class Rules(Boundary):
    """Ends with the clause, sentence, line or formula that finishes a calculation, a conclusion or a list item."""

    min_segment: int = 8
    """Shorter ones go on to the next place."""
    words: str = "so thus hence therefore total answer result finally conclusion"
    """What a conclusion is known by."""
    soft: int | None = None
    """Tokens after which a segment ends at the next word as well: short segments that leave sums of bare numbers whole, which
    `max_segment` cuts in two (a sum with units can still be cut behind one of them). None: only where a thought ends."""
    max_segment: int = 256

    WORD: ClassVar[re.Pattern[str]] = re.compile(r"[^\W\d_]{2,}[\"')\],;:.!?]*\s*$")  # an x alone multiplies
    CLAUSE: ClassVar[re.Pattern[str]] = re.compile(r"[^\d\s][,;:.!?][\"')\]]*\s*$|\n\s*$|\d[;!?]\s*$")
    ITEM: ClassVar[re.Pattern[str]] = re.compile(r"^\s*(?:[-*•]|\(?\d{1,2}[.)]|Step \d+:?)\s+\S.*\n\s*$", re.DOTALL | re.IGNORECASE)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.soft is not None and not self.min_segment <= self.soft < self.max_segment:
            raise ValueError(
                f"boundary 'rules' needs soft from min_segment={self.min_segment} to below max_segment={self.max_segment}, got {self.soft}."
            )

    def ends(self, step: Step) -> bool:
        if len(step.ids) < self.min_segment or not step.piece.strip(" ") or not step.text.strip():
            return False
        text = step.text
        if any(text.count(a) > text.count(b) if a != b else text.count(a) % 2 for a, b in MATHS):
            return False
        calculated = calculates(text)
        if any(text.rstrip().endswith(b) for _, b in MATHS) or DOLLARS.search(text.rstrip()):
            return calculated is not False
        if self.soft and len(step.ids) >= self.soft and calculated is not False and self.WORD.search(text):
            return True
        if not self.CLAUSE.search(text):
            return False
        return calculated is not False and bool(calculated or self.concludes(text) or self.ITEM.search(text))

    def concludes(self, text: str) -> bool:
        """Whether one of the words is there, in a sentence or line that is over (a comma does not end a conclusion)."""
        return text.rstrip(" \"')]").endswith((".", "!", "?", "\n")) and not set(self.words.split()).isdisjoint(
            re.findall(r"[a-z]+", text.lower())
        )


def calculates(text: str) -> bool | None:
    r"""Whether the last equation of `text` is worked out; None if there is no equation, or no number behind its sign.

    >>> [calculates(t) for t in ("so 3 + 4 = 7 figs.", "48 = 24 +", "3 + 4 =", "x = y", "seven", r"\[ 3 + 4 = \]", "$3 + 4 = 7$")]
    [True, False, False, None, None, False, True]
    """
    _, equals, side = CLOSED.sub("", text).replace("\u2248", "=").rpartition("=")
    number = NUMBER.match(side) if equals else None
    rest = side[number.end() :] if number else side
    if equals and (OPERATION.search(rest) or not (number or rest)):
        return False
    return True if number else None
