"""ROUGE-L through Google's rouge-score: the F-measure of the longest common subsequence of words (Lin 2004)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any


@cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # type: ignore[import-untyped]  # brings nltk: a second

    return RougeScorer(["rougeL"], use_stemmer=True)


def rouge_l(target: str, answer: str) -> float:
    """Between 0 and 1; 1 for the same words."""
    return float(_scorer().score(target, answer)["rougeL"].fmeasure)


def said(text: str) -> str:
    """An answer as it is compared: its first line, without capitals, outer blanks and the full stop.

    >>> said(" Your name is Mia.\\n\\nAnything else?")
    'your name is mia'
    """
    lines = text.strip().splitlines()
    return lines[0].strip().rstrip(".").casefold() if lines else ""


def among(options: Sequence[str], text: str) -> str:
    """An answer as it is compared, if it is one of the options (or there are none); else nothing."""
    return said(text) if not options or said(text) in map(said, options) else ""
