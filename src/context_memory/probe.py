"""Why an answer is wrong: did it lose a number, miscalculate, or take another number? Read off the text alone, so old predictions too.

A memory can only lose what an answer needs later: an operand that stands neither in the question nor in an earlier result was made up. An
equation whose sides do not agree is a slip that a full context makes as well. The first fault counts, since later ones follow from it.
What cannot be read for sure (percentages, words within a calculation, `≈`) is left alone: it is no fault, and its result is known.

Some operands are what everybody knows (a bicycle has 2 wheels): of GSM8K's first 3,000 training solutions, 199 have a `lost_number` and 20
`arithmetic`; those of tally none. So compare rows with `full`, and not with zero.
"""

from __future__ import annotations

import ast
import operator
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from context_memory.data._answers import final_number, numbers, same
from context_memory.intervals import Estimate, share
from context_memory.metrics import Prediction

KINDS = ("lost_number", "arithmetic", "wrong_number", "cut_off", "no_answer")
"""`wrong_number`: all operands exist and all sums are right, yet the answer is not: another number was taken, or a step left out."""

SMALL = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
WORDS: dict[str, tuple[float, ...]] = {
    **{word: (float(i),) for i, word in enumerate(SMALL.split())},
    **{word: (10.0 * i,) for i, word in enumerate(TENS.split(), 2)},
    "once": (1,), "twice": (2,), "double": (2,), "both": (2,), "couple": (2,), "pair": (2,), "thrice": (3,), "triple": (3,),
    "half": (2, 0.5), "third": (3,), "quarter": (4, 0.25), "fourth": (4,), "fifth": (5, 0.2), "sixth": (6,), "seventh": (7,),
    "eighth": (8,), "tenth": (10,), "dozen": (12,), "hundred": (100,), "thousand": (1000,), "cent": (100,), "foot": (12,),
    "feet": (12,), "inche": (12,), "yard": (3,), "minute": (60,), "hour": (60,), "day": (7, 24), "daily": (7,), "week": (7, 52),
    "weekend": (2,), "month": (4, 12, 30), "year": (12, 52, 365),
}  # fmt: skip
"""What a question gives without digits; a plural `s` is taken off."""
NORMAL = (
    (r"(?<=\d)(?:,|\{,\})(?=\d{3}(?!\d))|\\text\s*\{[^{}]*\}|\\[()\[\],;! $]|\\(?:left|right)(?![a-z])|[$€£]|(?<!\d)\*\*|\*\*(?!\d)", ""),
    (r"(\d+)\s*\\[dt]?frac\s*\{(\d+)\}\s*\{(\d+)\}", r"(\1+\2/\3)"),
    (r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"(\1)/(\2)"),
    (r"\\times(?![a-z])|\\cdot(?![a-z])|[\u00d7\u00b7]|\sx\s+(?=[\d(.])|(?<=[\d)])x(?=[\d(.])", "*"),
    (r"\\div(?![a-z])|\u00f7", "/"),
    ("[\N{MINUS SIGN}\N{EN DASH}]", "-"),
    (r"(?<![\d./])(\d+) (\d+/\d+)(?![\d/])", r"(\1+\2)"),  # 1 1/2
    (r"(?<=[\d)])\s*\((?=[\d(.])", "*("),
    (r"(?<=[\d)])[ \t]+[A-Za-z]{2}[A-Za-z ]*(?=[-+*/=])", " "),  # units: 5 apples + 3 apples = 8
)
"""LaTeX and other dress -> a sum that Python reads."""
SUM = r"[\d.()+*/ \t-]"
OPERATIONS: dict[type, Any] = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
LONG = 40
"""Tokens of a sum that are looked at; a model that repeats itself writes more."""


class Equation(NamedTuple):
    """An `=`. Where a side could not be read for sure, `sides` is None and there are no `operands`."""

    sides: tuple[float, float] | None
    operands: tuple[float, ...]
    """What the left side calculates with; nothing in a chain, where it is the right side of the equation before."""
    said: tuple[float, ...]
    """What stands behind the sign, to be used later."""
    slack: float
    """10 / 3 = 3.33 agrees."""


def equations(text: str) -> Iterator[Equation]:
    """Every equation, from left to right.

    >>> [e.sides for e in equations("So \\\\frac{48}{2} = 24 clips, and $1,200 - 200 = $1,000. 20% of 50 = 10")]
    [(24.0, 24.0), (1000.0, 1000.0), None]
    """
    for line in text.splitlines():
        for pattern, by in NORMAL:
            line = re.sub(pattern, by, line)
        parts = re.split("([=≈])", line)
        chained = False
        for left, sign, right in zip(parts[::2], parts[1::2], parts[2::2]):
            begins = re.match(rf"({SUM}*)(\\?%)?", right)
            said = tuple(n / d for n in numbers(begins[1]) for d in ((1, 100) if begins[2] else (1,))) if begins else ()
            point = re.match(r"\s*-?\d*\.(\d+)", right)
            a, b = _read(left, at_end=True), _read(right, at_end=False)
            sides = (a[0], b[0]) if a and b and len(a[1]) > 1 and sign == "=" else None
            operands = a[1] if a and sides and not chained else ()
            yield Equation(sides, operands, (*said, *(sides or ())), 10.0 ** -len(point[1]) if point else 1e-6)
            chained = sides is not None


def _read(side: str, at_end: bool) -> tuple[float, tuple[float, ...]] | None:
    """The value and the numbers of the sum that a side of an equation ends, or begins, with."""
    side = re.split(r"\.\s", side)[-1 if at_end else 0]
    found = re.search(rf"(?<![\w%^]){SUM}*$" if at_end else rf"^{SUM}*", side)
    if not found:
        return None
    text, before, behind = found[0].strip(), side[: found.start()], side[len(found[0].rstrip()) :]
    if at_end and not before.strip():
        text = re.sub(r"^[-*+]\s+", "", text)  # the bullet of a list
    goes_on = re.match(r"[+*/)]|-\s", text) if at_end else re.search(r"[-+*/(]$", text) or re.match(r"[A-Za-z]|\s*\\?%", behind)
    tokens = [] if goes_on else re.findall(r"\d+\.?\d*|\.\d+|\S", text)  # with a word, or it is a percentage
    tokens = tokens[-LONG:] if at_end else tokens[:LONG]
    while tokens:
        try:
            tree = ast.parse(" ".join(tokens), mode="eval")
            return _value(tree.body), tuple(float(n.value) for n in ast.walk(tree) if isinstance(n, ast.Constant))  # type: ignore[arg-type]
        except (SyntaxError, ValueError, ZeroDivisionError, OverflowError):
            tokens = tokens[1:] if at_end else tokens[:-1]
    return None


def _value(node: ast.expr) -> float:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return float(node.value)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATIONS:
        return float(OPERATIONS[type(node.op)](_value(node.left), _value(node.right)))
    raise ValueError(f"no sum: {ast.dump(node)}")


def given(prompt: str) -> set[float]:
    """The numbers of a question: digits, words, units of time, and what a percentage may be calculated with."""
    found = {0.0, 1.0, 2.0, 100.0, *map(abs, numbers(prompt))}
    for word in re.findall(r"[a-z]+", prompt.lower()):
        found.update(WORDS.get(word) or WORDS.get(word.removesuffix("s")) or ())
    for p in map(float, re.findall(r"(\d+(?:\.\d+)?)\s*(?:\\?%|percent)", prompt)):
        found.update((p / 100, 1 - p / 100, 1 + p / 100, 100 - p, 100 + p))
    return found


def why(prompt: str, answer: str, gold: float | None, cut: bool = False) -> str:
    """The kind of the first fault of a wrong answer; `cut`, it ended for want of room."""
    known = given(prompt)
    for e in equations(answer):
        if not all(any(same(n, k) for k in known) for n in e.operands):
            return "lost_number"
        if e.sides and abs(e.sides[0] - e.sides[1]) > e.slack:
            return "arithmetic"
        known |= {abs(n) for n in e.said}
    if cut and final_number(answer, marked=True) is None:
        return "cut_off"
    said = final_number(answer)
    return "no_answer" if said is None or same(said, gold) else "wrong_number"


def calculates(target: str) -> bool:
    """Whether it is a solution (an equation, or a marked number), and not a turn or a sentence that happens to have a number."""
    return final_number(target, marked=True) is not None or any(e.sides for e in equations(target))


def fault(p: Prediction) -> str | None:
    """The kind of the first fault of an answer, "right" if it is right; None where nothing was answered or nothing was to be calculated."""
    gold = final_number(p.target)
    if p.answer is None or gold is None or not calculates(p.target):
        return None
    return "right" if p.scores.get("correct", 1) >= 1 else why(p.prompt, p.answer, gold, p.reason == "length")


def faults(lines: Sequence[Prediction]) -> dict[str, int]:
    """How many wrong answers there are of every kind; nothing where there is none."""
    count = Counter(kind for p in lines if (kind := fault(p)) not in (None, "right"))
    return {kind: count[kind] for kind in KINDS} if count else {}


def recalled(lines: Sequence[Prediction]) -> dict[str, Estimate]:
    """What the memory gives back of an answer's earlier numbers (`recall.py`), mean over the answers without and with each fault."""
    found: dict[str, list[float]] = {}
    for p in lines:
        if "recall" in p.scores and (kind := fault(p)) is not None:
            found.setdefault(kind, []).append(p.scores["recall"])
    return {kind: share(found[kind]) for kind in ("right", *KINDS) if kind in found}
