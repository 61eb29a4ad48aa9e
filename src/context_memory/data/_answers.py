"""Numbers out of text: what a written answer comes to, however it is dressed up.

`#### 1,234`, `$72.00`, `\\boxed{72}`, `72 clips.`, `-5` and `.5` all give their number. A cut-off answer gives none: the number
that it happens to end with is a step of the way, and to count it would reward luck.
"""

from __future__ import annotations

import re

NUMBER = re.compile(r"(?<![\w.])(-?\\?[$€£]?|[$€£]-)((?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)")
"""A sign, a currency, digits with or without commas. `20-5` is 20 and 5: a hyphen after a digit subtracts."""
HASHES = re.compile(r"####[ \t]*\n?[ \t]*(?:(?:the )?(?:final )?answer(?: is)?:?)?[^\w\n-]*?(?=-?[\\$€£\d.])([^\n]*)", re.IGNORECASE)
"""The mark of GSM8K and ours, followed by a number; `#### Step 3` is a heading."""
HEADING = re.compile(r"\d+[.):]\s+[^\W\d]")
"""`#### 2. Conclusion` is one too, where another mark is to be had."""
BOXED = re.compile(r"\\boxed\s*\{((?:[^{}\n]|\{[^{}\n]*\})*)\}")
SAID = re.compile(r"answer(?: is|:)[^\d\n-]{0,40}?(?=(-?[\\$€£]*(?:\\[dt]?frac)?\{?[\d.][^\n]*))", re.IGNORECASE)
"""Looked ahead, so that a line may say it twice."""
SENTENCE = re.compile(r"[.;!?]\s+(?=\S)")
GROUPED = re.compile(r"(?<=\d)(?:\{,\}|,\\!|\\[,;: ]|[ \u00a0\u202f](?=\d{3}\W*$))(?=\d{3}(?!\d))")
"""What stands between thousands beside a comma: LaTeX's blanks, and a blank in a number that stands alone."""
FRACTION = re.compile(r"\W*?(-?)(?:(\d+) )?(?:\\[dt]?frac\{(\d+)\}\{(\d+)\}|(\d+)/(\d+))(?![\d/=*+-]|\s*[=*+-])")
"""All of what is said: `3/4`, `\\frac{3}{4}`, `1 1/2`."""
FINISHED = re.compile(r"[.!?)\]}*$%]\s*$|^\W*\S*\d\S*(?: [a-z]+){0,3}\s*$", re.IGNORECASE)
"""A sentence that ended, or nothing but a number and its unit."""


def numbers(text: str) -> list[float]:
    """All numbers in `text`, from left to right."""
    text = GROUPED.sub(",", text.replace("\N{MINUS SIGN}", "-"))
    return [float(digits.replace(",", "")) * (-1 if "-" in sign else 1) for sign, digits in NUMBER.findall(text)]


def final_number(answer: str, marked: bool = False) -> float | None:
    """The number that `answer` ends in, or None.

    The last `####` counts, else the last `\\boxed{}`, else the last "the answer is", each up to the end of its sentence; and where nothing
    marks an answer, the last number of a text that is not cut off. With `marked`, only `####` counts.
    """
    answer = answer.replace("\N{MINUS SIGN}", "-")
    hashes = HASHES.findall(answer)
    kinds = [hashes] if marked else [[h for h in hashes if not HEADING.match(h)], BOXED.findall(answer), SAID.findall(answer), hashes]
    for said in kinds:
        if said and (value := _value(SENTENCE.split(said[-1])[0])) is not None:
            return value
    if marked or not FINISHED.search(answer) or not (found := numbers(answer)):
        return None
    return found[-1]


def _value(said: str) -> float | None:
    """What a marked answer says: a fraction, what an equation comes to, or its first number."""
    if (found := FRACTION.match(said)) and (bottom := float(found[4] or found[6])):
        value = float(found[2] or 0) + float(found[3] or found[5]) / bottom
        return -value if found[1] else value
    every = numbers(said)
    return None if not every else every[-1] if "=" in said else every[0]


def digits(number: float) -> str:
    """The number as `numbers` reads it.

    >>> digits(1200.0), digits(-0.5), digits(10.0**16)
    ('1200', '-0.5', '10000000000000000')
    """
    return f"{number:.6f}".rstrip("0").rstrip(".")


def same(a: float | None, b: float | None) -> bool:
    """Equal numbers; None, an answer that is not there, equals nothing."""
    return a is not None and b is not None and abs(a - b) < 1e-6
