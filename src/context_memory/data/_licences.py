"""What the data of an adapter leave of its use: licences of corpora, and which of them forbid commercial use."""

from __future__ import annotations

import re
from pathlib import Path

UNKNOWN = "unknown"
CORPORA = {
    "self_dialogue": "BSD-3-Clause",
    "sgd": "CC-BY-SA-4.0",
    "topical_chat": "CDLA-Sharing-1.0",
    "soda": "CC-BY-4.0",
    "dailydialog": "CC-BY-NC-SA-4.0",
}
"""Conversations by the name of their folder."""


def non_commercial(licence: str) -> bool:
    """Whether a licence, or one of several that are joined, forbids commercial use.

    >>> non_commercial("CC-BY-NC-SA-4.0"), non_commercial("MIT + CC-BY-4.0")
    (True, False)
    """
    return re.search(r"\bNC\b|non-?commercial", licence, re.IGNORECASE) is not None


def joined(*licences: str) -> str:
    """Several as one, each once.

    >>> joined("MIT", "", "MIT + BSD-3-Clause")
    'MIT + BSD-3-Clause'
    """
    return " + ".join(dict.fromkeys(one for licence in licences for one in licence.split(" + ") if one))


def of_corpora(path: str, corpus: str) -> str:
    """Of conversations; nothing is known of a file of one's own."""
    own = path and Path(path).expanduser().is_file()
    return UNKNOWN if own else joined(*(CORPORA.get(name, UNKNOWN) for name in corpus.split("+")))


def must_be_permissive(licence: str, split: str) -> None:
    """Raises ValueError if it is to be trained on data that forbid commercial use."""
    if split == "train" and non_commercial(licence):
        raise ValueError(f"training data under {licence} leave an adapter for non-commercial use; say permissive=false if that is meant.")
