"""Books and conversations of the hub: read as a stream, no more than asked for, and told when it cannot be reached."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest

from context_memory.data import _hub
from context_memory.data.books import Books
from context_memory.data.dialogue import Dialogue
from context_memory.errors import InputError

BOOKS = [{"short_book_title": title, "text": text * 400} for title, text in (("Emma", "one two three "), ("Moby Dick", "four five six "))]
TALKS = [{"dialogue": ["Hi.", "Hello.", "How are you?"]}, {"dialogue": ["Alone."]}, {"dialogue": ["Well.", "Good.", "Bye."]}] * 5


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A hub of two books and some conversations; what was asked of it, and which rows were read."""
    asked: list[Any] = []

    def load_dataset(repository: str, config: str | None, split: str, streaming: bool) -> Iterator[dict[str, Any]]:
        asked.append((repository, split, streaming))
        for row in BOOKS if repository == _hub.PG19 else TALKS:
            asked.append(row)
            yield row

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.delenv("CCM_DATA", raising=False)
    monkeypatch.chdir(tmp_path)  # what is remembered of one folder is not of another
    return asked


def test_a_book_by_number_or_title(hub: list[Any]) -> None:
    assert [_hub.book(name)[0] for name in ("pg19", "pg19:1", "pg19:moby")] == ["Emma", "Moby Dick", "Moby Dick"]
    assert hub[0] == ("emozilla/pg19", "test", True) and hub[:3].count(BOOKS[0]) == 1 and BOOKS[1] not in hub[:2]
    for wrong, said in (("pg19:Ulysses", "no test book 'Ulysses' among 2; have: Emma, Moby Dick"), ("c4", "the hub's books are pg19")):
        with pytest.raises(InputError, match=said):
            _hub.book(wrong)


def test_books_to_train_on(hub: list[Any]) -> None:
    found = Books(corpus="pg19", most=1, words=50, chunks=3).examples("train")
    assert hub[0] == ("emozilla/pg19", "train", True) and BOOKS[1] not in hub
    assert found and all("four" not in e.target for e in found)
    with pytest.raises(ValueError, match="corpus is pg19"):
        Books(corpus="c4")


def test_conversations_where_no_file_is(hub: list[Any]) -> None:
    found = Dialogue(corpus="soda", turns=2, most=3).examples("train")
    assert hub[0] == ("allenai/soda", "train", True)
    assert sum(row in TALKS for row in hub[1:]) <= 6  # three that have an answer, and no more than it took to find them
    assert {e.target for e in found} <= {"How are you?", "Bye."} and found


def test_what_is_not_for_commercial_use_is_asked_for(hub: list[Any]) -> None:
    with pytest.raises(ValueError, match=r"CC-BY-NC-SA-4\.0 .+ say permissive=false if that is meant"):
        Dialogue(corpus="dailydialog", turns=2).examples("train")
    assert Dialogue(corpus="dailydialog", turns=2, permissive=False).examples("train")
    assert Dialogue(corpus="dailydialog", turns=2).examples("test")  # to be measured on it trains nothing


def test_without_a_network_it_says_what_to_do(hub: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: object, **__: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(InputError, match=r"could not get emozilla/pg19 from the hub \(ConnectionError\); give \.txt files instead"):
        _hub.book("pg19")
    with pytest.raises(OSError, match=r"could not get allenai/soda .+ put rows .+/soda/train\.jsonl"):
        Dialogue(corpus="soda").examples("train")
