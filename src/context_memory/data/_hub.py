"""Rows of published datasets from the Hugging Face hub, read as a stream: no more is fetched than is asked for.

Each is a repository of plain files: the library `datasets` runs no scripts any more, so PG19 is not `deepmind/pg19` and DailyDialog not
`li2017dailydialog/daily_dialog`, which are scripts.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from context_memory.data._fields import texts
from context_memory.data._files import Row
from context_memory.errors import InputError

CONVERSATIONS = {"soda": "allenai/soda", "dailydialog": "OpenRL/daily_dialog"}
"""Corpus of `dialogue` -> repository. SODA is in the field `dialogue`, DailyDialog in `dialog`."""
PG19 = "emozilla/pg19"
"""Books from before 1919 (Rae et al. 2020, arXiv:1911.05507): fields `short_book_title` and `text`."""


def hub_rows(repository: str, split: str, instead: str, config: str | None = None, whole: bool = False) -> Iterator[Row]:
    """The rows of a published split, one after the other.

    Args:
        instead: what to do where the hub cannot be reached.
        whole: fetch all of it before the first row, and keep it for the next time.

    Raises:
        OSError: the hub could not be reached, or has no such split.
    """
    from datasets import load_dataset  # seconds to import, and only the hub needs it

    try:
        for i, row in enumerate(load_dataset(repository, config, split=split, streaming=not whole), 1):
            yield f"{repository} {split}, row {i}", row
    except Exception as error:  # the hub's client raises its own, its transport's and the system's errors
        raise OSError(f"could not get {repository} from the hub ({type(error).__name__}); {instead}") from error


def conversations(corpus: str, split: str, most: int) -> list[Row]:
    """The first rows with something to answer."""
    file = f"{corpus}/{split}.jsonl"
    rows = hub_rows(CONVERSATIONS[corpus], split, f"put rows {{'dialog': [turn, ...]}} at $CCM_DATA/dialogue/{file}, or give data.path=.")
    said = ((where, row.get("dialog") or row.get("dialogue") or ()) for where, row in rows)
    return [(where, {"dialog": list(turns)}) for where, turns in islice((r for r in said if sum(map(bool, r[1])) > 1), most)]


def books(split: str) -> Iterator[tuple[str, str]]:
    """Titles and texts of PG19's books.

    Raises:
        OSError, ValueError: see `hub_rows`; a row without a text.
    """
    for row in hub_rows(PG19, split, "give .txt files instead."):
        title, text = texts(row, "short_book_title", "text")
        yield title, text


def book(named: str) -> tuple[str, str]:
    """Title and text of one test book: `pg19` is the first, `pg19:3` the one with number 3, `pg19:some words` the first with them in
    its title.

    Raises:
        InputError: not PG19, no such book, or the hub could not be reached.
    """
    corpus, _, which = named.partition(":")
    if corpus != "pg19":
        raise InputError(f"the hub's books are pg19, as in pg19, pg19:3 or 'pg19:some words of a title'; got '{named}'.")
    number, titles = int(which or 0) if which.isdecimal() or not which else -1, list[str]()
    try:
        for title, text in books("test"):
            if len(titles) == number or (number < 0 and which.casefold() in title.casefold()):
                return title, text
            titles.append(title)
    except OSError as e:
        raise InputError(str(e)) from e
    raise InputError(f"PG19 has no test book '{which}' among {len(titles)}; have: {', '.join(titles[:8])}, ...")
