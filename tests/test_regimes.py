"""Datasets with a context: what their files become, what is learnt of them, and what is refused."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from context_memory.data._fact_words import words
from context_memory.data.books import Books, chunks
from context_memory.data.dialogue import Dialogue
from context_memory.data.fact import Fact
from context_memory.data.icl import Icl
from context_memory.data.mixture import Mixture
from context_memory.data.personal import Personal

TURNS = [[f"Turn {j} of {i}." for j in range(n)] for i, n in enumerate((16, 5, 40, 14))]


def jsonl(path: Path, rows: list) -> Path:  # type: ignore[type-arg]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


@pytest.fixture
def talk(tmp_path: Path) -> Path:
    for split in ("train", "validation", "test"):
        jsonl(tmp_path / "talk" / f"{split}.jsonl", [{"dialog": t} for t in TURNS])
    return tmp_path


def test_turns_become_windows(talk: Path) -> None:
    test = Dialogue(str(talk), "talk", turns=13).examples("test")
    assert [e.id for e in test] == ["talk/test/0", "talk/test/2", "talk/test/3"]  # one of 5 turns is too short for 13 and one more
    assert (test[1].context[0], test[1].prompt, test[1].target) == ("Turn 0 of 2.", "Turn 12 of 2.", "Turn 13 of 2.")
    train = Dialogue(str(talk), "talk", turns=13).examples("train")
    said = Counter(e.target.split()[-1] for e in train)
    assert said == {"0.": 1, "1.": 1, "2.": 3, "3.": 1}
    assert all(len(e.context) == len(e.learn) and set(e.learn) == {0} for e in train)
    ends = [e for e in train if e.target.endswith("of 2.")]
    assert [e.target for e in ends] == ["Turn 13 of 2.", "Turn 26 of 2.", "Turn 39 of 2."]


def test_bad_conversations_are_named(talk: Path) -> None:
    for rows, message in (
        ([{"dialog": ["Hello!"]}], r"line 1: a dialogue of 1 turn\(s\) has nothing to answer"),
        ([{"dialog": ["Hi.", " "]}], r"a dialogue of 1 turn"),
        ([{"dialog": "Hi."}], r"needs a list 'dialog', got 'Hi.' \(str\)"),
        ([["Hi.", "Ho."]], r"line 1: needs an object .*, got \['Hi.', 'Ho.'\] \(list\)"),
    ):
        file = jsonl(talk / f"{len(message)}.jsonl", rows)
        with pytest.raises(ValueError, match=message):
            Dialogue(str(file)).examples("test")
    with pytest.raises(ValueError, match=r"data.corpus= names folders .*: talk"):
        Dialogue(str(talk), "walk").examples("test")
    with pytest.raises(ValueError, match=r"no conversation .* 51 turns, the longest has 40; lower data.turns"):
        Dialogue(str(talk), "talk", turns=50).examples("test")
    with pytest.raises(ValueError, match="at least 2"):
        Dialogue(turns=1)


def test_a_fact_is_said_once_and_asked_for(talk: Path) -> None:
    for split in ("train", "test"):
        for e in Fact(str(talk), "talk", turns=12).examples(split):
            said = [i for i, turn in enumerate(e.context) if e.meta["word"] in turn.rstrip(".").split()]
            assert said == [len(e.context) - 1 - e.meta["ago"]] and e.target in e.options and len(set(e.options)) == len(e.options)
    assert not set(words("name", "train")) & set(words("name", "test"))
    again = Fact(str(talk), "talk", turns=12).examples("test")
    assert again == Fact(str(talk), "talk", turns=12).examples("test") != Fact(str(talk), "talk", turns=12, seed=1).examples("test")


def tasks(root: Path) -> Path:
    for folder, names in (("train", ("free", "bound")), ("test", ("new",))):
        for name in names:
            rows = [
                {"task": name, "split": s, "input": f"{name} {s} {i}", "output": "ab"[i % 2], "options": ["a", "b"]}
                for s in ("train", "test")
                for i in range(12)
            ]
            jsonl(root / folder / f"{name}.jsonl", rows)
    (root / "tasks.json").write_text(json.dumps([
        {"task": "free", "permissive": True, "license": "CC-BY-4.0 (of an index)"}, {"task": "new", "permissive": True},
        {"task": "bound", "permissive": False, "license": "research / non-commercial only"},
    ]))  # fmt: skip
    return root


def test_demonstrations_and_queries(tmp_path: Path) -> None:
    data = Icl(str(tasks(tmp_path)), k=4, train=30, queries=5, seeds=2)
    train, test = data.examples("train"), data.examples("test")
    assert {e.meta["task"] for e in train} == {"free"} and data.licence == "CC-BY-4.0"
    assert replace(data, permissive=False).licence == "CC-BY-4.0 + research / non-commercial only"
    assert {e.meta["task"] for e in Icl(str(tmp_path), k=4, train=30, permissive=False).examples("train")} == {"free", "bound"}
    assert all(f"{e.prompt}\n" not in "".join(e.context) and len(e.context) == 4 for e in train)
    assert all(e.context[0][e.learn[0] :] in ("a\n", "b\n") for e in train)
    assert len(test) == 10 and len({e.context for e in test}) == 2  # a draw of demonstrations serves all its queries
    assert [e.group for e in test] == 2 * [f"new/{i}" for i in range(5)]  # and a query is asked after each
    assert all(e.prompt.startswith("new test") and all(d.startswith("new train") for d in e.context) for e in test)
    assert data.score(test[0], test[0].target)["task new"] == 1


def test_tasks_of_their_own_to_validate_with(tmp_path: Path) -> None:
    every = Icl(str(tasks(tmp_path)), k=2, train=40, permissive=False)
    assert {e.meta["task"] for e in every.examples("validation")} == {e.meta["task"] for e in every.examples("train")} == {"free", "bound"}
    apart = replace(every, held_out=1)
    (told,) = {e.meta["task"] for e in apart.examples("validation")}
    assert {e.meta["task"] for e in apart.examples("train")} == {"free", "bound"} - {told}
    assert apart.examples("test") == every.examples("test") and {e.meta["task"] for e in apart.examples("test")} == {"new"}
    assert len({e.meta["task"] for s in range(8) for e in replace(apart, seed=s).examples("validation")}) == 2  # drawn with the seed
    with pytest.raises(ValueError, match=r"held_out=2 of 2 task\(s\) leaves none to train on"):
        replace(apart, held_out=2).examples("train")


def test_metaicl_files_and_bad_rows(tmp_path: Path) -> None:
    for task in ("glue-x", "unseen"):
        for part in ("train", "test"):
            rows = [{"input": f"{part} {i}", "output": "a", "options": ["a", "b"]} for i in range(4)]
            jsonl(tmp_path / task / f"{task}_16_13_{part}.jsonl", rows)
    config = tmp_path / "hr_to_lr.json"
    config.write_text(json.dumps({"train": ["glue-x"], "test": ["unseen"]}))
    data = Icl(str(tmp_path), str(config), k=2, train=3)
    assert [len(data.examples(s)) for s in ("train", "validation", "test")] == [3, 4, 4]
    for row, message in (
        ({"input": "x", "output": "c", "options": ["a", "b"]}, "must be one of the options"),
        ({"input": "x", "output": "a", "options": ["a", " "]}, "line 1: option 2 is empty"),
        ({"input": " ", "output": "a"}, "needs a text 'input'"),
        ({"output": "a"}, "have: output"),
    ):
        root = tmp_path / str(len(str(row)))
        jsonl(root / "train" / "t.jsonl", [row | {"split": "train"}])
        with pytest.raises(ValueError, match=message):
            Icl(str(root)).examples("train")


def test_profiles_and_lamp(tmp_path: Path) -> None:
    profile = [{"text": f"Film {i}", "rating": str(1 + i % 5)} for i in range(20)]
    row = {"profile": profile, "input": "Film 3", "output": "4", "options": ["1", "4", "5"]}
    jsonl(tmp_path / "test.jsonl", [row])
    (e,) = Personal(str(tmp_path), k=3).examples("test")
    assert e.context == ("Film 17\n3\n", "Film 18\n4\n", "Film 19\n5\n") and e.context[0][e.learn[0] :] == "3\n"
    (found,) = Personal(str(tmp_path), k=3, select="bm25").examples("test")
    assert "Film 3\n4\n" in found.context
    jsonl(tmp_path / "train.jsonl", [row | {"user": user} for user in (7, 7, 8)])
    assert [e.group for e in Personal(str(tmp_path)).examples("train")] == ["7", "7", "8"] and e.group == ""
    assert replace(e, group="7").digest == e.digest != replace(e, target="5").digest  # what an answer depends on
    assert Personal().score(e, "1")["mae"] == 3 and Personal().score(e, "4") == {"correct": 1.0, "mae": 0.0}
    jsonl(tmp_path / "validation.jsonl", [row | {"profile": []}])
    with pytest.raises(ValueError, match=r"line 1: the profile is empty"):
        Personal(str(tmp_path)).examples("validation")
    lamp = tmp_path / "LaMP_2"
    lamp.mkdir()
    entry = {"id": "x", "tag": "comedy", "description": "Two friends. "}
    asked = [{"id": f"2{i}", "input": "Which tag?", "profile": [entry]} for i in range(21)]
    for name in ("train", "dev"):
        (lamp / f"{name}_questions.json").write_text(json.dumps(asked))
        (lamp / f"{name}_outputs.json").write_text(json.dumps({"golds": [{"id": q["id"], "output": "comedy"} for q in asked]}))
    data = Personal(str(tmp_path), "LaMP-2")
    assert [len(data.examples(s)) for s in ("train", "validation", "test")] == [19, 2, 21]
    assert data.examples("test")[0].context == ("Two friends.\ncomedy\n",) and "sci-fi" in data.examples("test")[0].options
    with pytest.raises(ValueError, match=r"no file .*dev_questions.json"):
        Personal(str(tmp_path), "LaMP-3").examples("test")
    with pytest.raises(ValueError, match="LaMP-1 to LaMP-7"):
        Personal(task="LaMP-9")


def test_books_are_chunks_of_running_text(tmp_path: Path) -> None:
    whole = "  ".join(f"word{i}." for i in range(100)) + "\n"
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "a.txt").write_text(whole)
    found = Books(str(tmp_path), words=10, chunks=3).examples("test")
    assert len(found) == 3 and all(e.running and len(e.context) == 2 for e in found)
    assert "".join(part for e in found for part in (*e.context, e.target)) == "".join(chunks(whole, 10)[:9])
    for raw, message in ((b"a\0b", "NUL byte at offset 1"), (b"abc\xff\xfe", "not UTF-8 at offset 3"), (b" \n", "is empty")):
        (tmp_path / "bad.txt").write_bytes(raw)
        with pytest.raises(ValueError, match=message):
            Books(str(tmp_path / "bad.txt")).examples("test")
    with pytest.raises(ValueError, match=r"no \.txt files"):
        Books(str(tmp_path)).examples("train")


def test_the_first_questions_are_of_all_tasks(tmp_path: Path) -> None:
    found = Icl(str(tasks(tmp_path)), k=2, permissive=False).examples("validation")
    assert [e.meta["task"] for e in found] == ["bound", "free"] * 12
    assert len({e.context for e in found}) == 2  # the demonstrations of a task are those of all its questions


def test_a_mixture_keeps_weights_and_scores_by_part(talk: Path) -> None:
    tasks(talk)
    settings = {"icl": {"path": str(talk), "k": 2, "train": 400}, "dialogue": {"path": str(talk), "corpus": "talk"}}
    data = Mixture(["icl", "dialogue"], [30, 1], settings)
    train = data.examples("train")
    share = Counter(e.meta["part"] for e in train)
    assert share["icl"] > 5 * share["dialogue"] > 0 and len({e.id for e in train}) == len(train)
    test = data.examples("test")
    assert [e.meta["part"] for e in test] == ["icl", "dialogue"] * 3 + ["icl"] * 9  # the first few are of all parts
    assert data.score(test[0], test[0].target)["correct in icl"] == 1
    for bad in ({"weights": [1.0]}, {"parts": ["mixture"]}, {"settings": {"books": {}}}):
        with pytest.raises(ValueError, match=r"parts|weights|books"):
            Mixture(**bad)  # type: ignore[arg-type]
