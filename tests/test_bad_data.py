"""Wrong files, rows and settings of the datasets with a context: each is refused in words that say where, what came, what to do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from context_memory.compose import load
from context_memory.config import Config
from context_memory.data._files import rows_of
from context_memory.data._tasks import terms
from context_memory.data.base import Dataset
from context_memory.data.books import Books
from context_memory.data.dialogue import Dialogue
from context_memory.data.fact import Fact
from context_memory.data.icl import Icl
from context_memory.data.mixture import Mixture
from context_memory.data.personal import Personal
from context_memory.errors import UserError

USER = {"profile": [{"text": "Alien", "rating": 5}], "input": "Aliens", "output": "4", "options": ["1", "4"]}
LABELLED = {"input": "A delight.", "output": "yes", "options": ["yes", "no"]}


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def refused(dataset: Dataset, message: str, split: str = "test") -> None:
    with pytest.raises(ValueError, match=message):
        dataset.examples(split)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({}, ""),
        ({"options": None}, ""),
        ({"options": ["4", "1", "4"]}, ""),
        ({"options": ["1", "4", ""]}, r"line 2: option 3 is empty, got ''"),
        ({"options": 5}, r"line 2: needs a list 'options', got 5 \(int\)"),
        ({"options": "12345"}, r"line 2: needs a list 'options', got '12345' \(str\)"),
        ({"options": ["4", None]}, r"line 2: option 2 must be a text, got nothing"),
        ({"options": ["4", "4"]}, r"line 2: options must be at least two, each another text, got \['4', '4'\]"),
        ({"options": ["4"]}, r"line 2: options must be at least two, each another text, got \['4'\]"),
        ({"options": ["4", "1", "4 "]}, r"line 2: options must be at least two, each another"),
        ({"options": ["1", "2"]}, r"line 2: output '4' must be one of the options \['1', '2'\]"),
        ({"profile": [{"text": "Alien"}, {"text": " \n"}]}, r"line 2, profile entry 2: needs a text 'text', got ' \\n'"),
        ({"profile": ["Alien"]}, r"line 2, profile entry 1: needs an object .*, got 'Alien' \(str\)"),
        ({"profile": [{"text": "Alien", "rating": [5]}]}, r"profile entry 1: needs a text 'rating', got \[5\] \(list\)"),
        ({"profile": {"text": "Alien"}}, r"line 2: needs a list 'profile', got {'text': 'Alien'} \(dict\)"),
    ],
)
def test_users(changed: Mapping[str, Any], message: str, tmp_path: Path) -> None:
    jsonl(tmp_path / "test.jsonl", [USER, USER | changed])
    if message:
        refused(Personal(str(tmp_path)), message)
    else:  # control: such a row is read
        assert [e.context for e in Personal(str(tmp_path)).examples("test")] == [("Alien\n5\n",)] * 2


def test_places_and_settings(tmp_path: Path) -> None:
    jsonl(tmp_path / "test.jsonl", [USER])
    refused(Personal(str(tmp_path / "test.jsonl")), r"test.jsonl' is a file; data.path= is the folder of train.jsonl")
    refused(Personal(str(tmp_path)), r"cannot read '.*train.jsonl': No such file", "train")
    for make, message in (
        (lambda: Personal(k=0), "k must be at least 1, an entry to remember, got 0"),
        (lambda: Personal(k=-2), "k must be at least 1"),
        (lambda: Icl(k=-1), "k must be at least 0, got -1"),
        (lambda: Icl(seeds=0), "seeds must be at least 1, got 0"),
        (lambda: Icl(queries=0), "queries must be at least 1"),
        (lambda: Icl(held_out=-1), "held_out must be at least 0, got -1"),
        (lambda: Books(words=0), "words must be at least 1, a chunk has some; got 0"),
        (lambda: Books(chunks=1), "chunks must be at least 2, one to remember and one to predict; got 1"),
        (lambda: Fact(turns=1), "turns must be at least 2, got 1"),
        (lambda: Mixture(["icl", "nope"]), "part 'nope': no dataset called 'nope'; have: .*icl"),
        (lambda: Mixture(["icl"], settings={"icl": {"q": 1}}), "part 'icl': data/icl.py has no setting 'q'"),
        (lambda: Mixture(["icl"], settings={"icl": {"k": -1}}), "part 'icl': k must be at least 0"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    with pytest.raises(UserError, match="data=mixture: part 'nope': no dataset"):
        Config(data={"name": "mixture", "parts": ["icl", "nope"]}).dataset()


def lamp(folder: Path, task: int, question: Mapping[str, Any], golds: object) -> Personal:
    place = folder / f"LaMP_{task}"
    place.mkdir(exist_ok=True)
    (place / "dev_questions.json").write_text(json.dumps([question]))
    (place / "dev_outputs.json").write_text(json.dumps(golds))
    return Personal(str(folder), f"LaMP-{task}")


QUESTION = {"id": 7, "input": "Which score?", "profile": [{"id": "1", "text": "Fine.", "score": 4}]}
GOLDS = {"golds": [{"id": "7", "output": "4"}]}


@pytest.mark.parametrize(
    ("question", "golds", "message"),
    [
        (QUESTION, GOLDS, ""),
        ({"id": "7", "input": "Which?"}, GOLDS, r"dev_questions.json, question 7: needs a list 'profile', got nothing; have: id, input"),
        ({"input": "Which?", "profile": []}, GOLDS, r"dev_questions.json, row 1: needs a text 'id', got nothing"),
        (QUESTION | {"profile": [{"text": "Fine."}]}, GOLDS, r"question 7, profile entry 1: needs a text 'score', got nothing; have: text"),
        (QUESTION | {"profile": [{"text": " ", "score": 1}]}, GOLDS, r"question 7: the profile is empty"),
        (QUESTION | {"profile": [{"text": " ", "score": 1}, *QUESTION["profile"]]}, GOLDS, ""),
        (QUESTION | {"profile": [{"text": "Fine.", "score": " "}]}, GOLDS, r"profile entry 1: needs a text 'score', got ' '"),
        (QUESTION | {"profile": ["Fine."]}, GOLDS, r"question 7, profile entry 1: needs an object"),
        (QUESTION, [GOLDS], r"dev_outputs.json: needs an object .*\(list\)"),
        (QUESTION, {"golds": [{"id": "7"}]}, r"dev_outputs.json, answer 1: needs a text 'output'"),
        (QUESTION, {"golds": [{"id": "8", "output": "4"}]}, r"question 7: no answer in dev_outputs.json"),
        (QUESTION, {"golds": [{"id": "7", "output": "6"}]}, r"question 7: output '6' must be one of the options \['1', '2', '3',"),
    ],
)
def test_lamp(question: Mapping[str, Any], golds: object, message: str, tmp_path: Path) -> None:
    data = lamp(tmp_path, 3, question, golds)
    if message:
        refused(data, message)
    else:
        assert data.examples("test")[0].context == ("Fine.\n4\n",)


def test_lamp_files_that_are_cut(tmp_path: Path) -> None:
    data = lamp(tmp_path, 3, QUESTION, GOLDS)
    whole = (tmp_path / "LaMP_3" / "dev_questions.json").read_bytes()
    (tmp_path / "LaMP_3" / "dev_questions.json").write_bytes(whole[:30])
    refused(data, r"dev_questions.json, line 1: not JSON .*; is it cut off\?")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([LABELLED | {"options": "yn", "output": "y"}], r"test/t.jsonl, line 1: needs a list 'options', got 'yn'"),
        ([LABELLED | {"options": ["yes"]}], r"line 1: options must be at least two"),
        ([LABELLED | {"options": ["yes", "yes"]}], r"line 1: options must be at least two, each another text, got \['yes', 'yes'\]"),
        ([LABELLED | {"options": ["no", "maybe"]}], r"line 1: output 'yes' must be one of the options"),
        ([LABELLED | {"split": "train"}], r"task 't' needs 1 row\(s\) with split 'test', has 0"),
        ([LABELLED | {"split": "test"}], r"task 't' needs 1 row\(s\) with split 'train', has 0"),
        ([None], r"line 1: needs an object .*, got nothing"),
        ([], r"test/t.jsonl has no rows"),
    ],
)
def test_tasks(rows: list[Any], message: str, tmp_path: Path) -> None:
    jsonl(tmp_path / "train" / "s.jsonl", [LABELLED | {"split": s} for s in ("train", "test")])
    jsonl(tmp_path / "test" / "t.jsonl", rows)
    refused(Icl(str(tmp_path)), message)


def test_a_task_to_train_on_has_a_row_to_show_and_one_to_ask(tmp_path: Path) -> None:
    for name, rows in (("train", 1), ("test", 2)):
        jsonl(tmp_path / name / "s.jsonl", [LABELLED | {"split": "train"}] * rows + [LABELLED | {"split": "test"}])
    refused(Icl(str(tmp_path)), r"task 's' needs 2 row\(s\) with split 'train', has 1", "train")
    assert len(Icl(str(tmp_path)).examples("test")) == 1  # what is not asked for is not missed


def test_lists_of_tasks(tmp_path: Path) -> None:
    for text, message in (
        ('{"train": []}', r"needs a list 'test', got nothing; have: train"),
        ('{"train": [3], "test": []}', r"'train' task 1 must be a text, got 3 \(int\)"),
        ('{"train": [', r"config.json, line 1: not JSON .*; is it cut off\?"),
        ('["a"]', r"config.json: needs an object"),
        ('{"train": [], "test": []}', r"no tasks to take rows from"),
    ):
        config = tmp_path / str(len(text)) / "config.json"
        config.parent.mkdir()
        config.write_text(text)
        refused(Icl(str(tmp_path), str(config)), message)
    note = tmp_path / "noted" / "tasks.json"
    note.parent.mkdir()
    note.write_text('[{"permissive": true}]')
    with pytest.raises(ValueError, match=r"tasks.json, row 1: needs a text 'task'"):
        terms(str(note.parent))


def metaicl(folder: Path, *names: str) -> Icl:
    """Task t to train on and task u to test on, with these files."""
    for name in names:
        jsonl(folder / name[0] / name, [{"input": f"{name} {i}", "output": "yes", "options": ["yes", "no"]} for i in range(3)])
    (folder / "config.json").write_text('{"train": ["t"], "test": ["u"]}')
    return Icl(str(folder), str(folder / "config.json"), k=2, train=2)


def test_folders_of_metaicl(tmp_path: Path) -> None:
    train, shown, asked = "t_16384_100_train.jsonl", "u_16_13_train.jsonl", "u_16_13_test.jsonl"
    refused(metaicl(tmp_path / "a", train, shown), r"no u_SHOTS_SEED_test.jsonl with rows in '.*u'; put MetaICL's there, or leave the task")
    refused(metaicl(tmp_path / "b", train, asked), r"no u_SHOTS_SEED_train.jsonl with rows in")
    refused(metaicl(tmp_path / "c", shown, asked, "t_16384_100_test.jsonl"), r"no t_SHOTS_SEED_train.jsonl with rows in")
    (tmp_path / "d" / "u").mkdir(parents=True)
    (tmp_path / "d" / "u" / asked).write_text("")
    refused(metaicl(tmp_path / "d", train, shown), r"no u_SHOTS_SEED_test.jsonl with rows in")
    whole = metaicl(tmp_path / "e", train, shown, asked)
    assert len(whole.examples("test")) == 3  # control
    refused(replace(whole, seeds=2), r"task 'u' has demonstrations of 1 seed\(s\), one a file, and seeds is 2; lower it, or put the other ")


def test_conversations(tmp_path: Path) -> None:
    for i, (raw, message) in enumerate((
        (b'{"dialog": ["Hi.", 5]}', r"line 1: turn 2 must be a text, got 5 \(int\)"),
        (b'{"turns": ["Hi."]}', r"line 1: a dialogue of 1 turn"),
        (b'{"dialog": ["Hi.", "Ho."]}\nnull', r"line 2: needs an object .*, got nothing"),
        (b'{"dialog": ["Hi.", "caf\xe9"]}', r"byte 0xe9, which is not UTF-8 at offset 23 \(line 1\)"),
        (b"\n\n", r"4.jsonl has no rows"),
        (b'{"dialog": ["Hi.", "Ho."]}', r"none of its 1 conversations is in the test split; give more, or a folder"),
        (b'{"dialog": ["Hi.", "half \\ud800"]}', r"line 1: turn 2 must be a text, got 'half"),
        (b'{"dialog": ["Hi.", "Hi."]}', r"no conversation of the test split has 14 turns, the longest has 2; lower data.turns"),
    )):  # fmt: skip
        (tmp_path / f"{i}.jsonl").write_bytes(raw)
        refused(Dialogue(str(tmp_path / f"{i}.jsonl")), message)
    forms = r"line 1: needs a list of texts 'dialog' \(or 'dialogue' or 'turns'\), or of 'messages' {role, content}; have: "
    user = {"role": "user", "content": "Hi."}
    for i, (row, message) in enumerate((
        ({"text": "Hi."}, forms + "text"),
        ({"dialog": None}, forms + "dialog"),
        ({"messages": "Hi."}, r"line 1: needs a list 'messages', got 'Hi.' \(str\)"),
        ({"messages": ["Hi."]}, r"line 1, message 1: needs an object .*, got 'Hi.' \(str\)"),
        ({"messages": [user, {"role": "tool", "content": "4"}]}, r"'role' must be user, assistant, system, developer, got 'tool'"),
        ({"messages": [user, {"content": "Ho."}]}, r"message 2: 'role' must be user, .*, got nothing; leave the message out"),
        ({"messages": [user, {"role": "assistant", "content": None}]}, r"message 2: 'content' must be a text, got nothing"),
        ({"messages": [user, {"role": "assistant", "content": [{"text": "Ho."}]}]}, r"'content' must be a text, got \[.*\(list\)"),
        ({"messages": [{"role": "system", "content": "Be kind."}, user, user]}, r"line 1: a dialogue of 1 turn"),
        ({"turns": [user]}, r"line 1: turn 1 must be a text, got {.*\(dict\)"),
    )):  # fmt: skip
        refused(Dialogue(str(jsonl(tmp_path / f"chat{i}.jsonl", [row]))), message)
    refused(Dialogue(str(tmp_path / "5.jsonl")), r"train split has 3 turns, the longest has 2; give longer ones", "train")
    refused(Fact(str(tmp_path / "7.jsonl")), r"has 12 turns, the longest has 2; lower data.turns")
    assert len(Fact(str(tmp_path / "7.jsonl"), turns=2).examples("test")) == 1  # control


def test_a_split_with_nothing_in_it(tmp_path: Path) -> None:
    """Of all splits of a small file it is passed over; where they all have nothing, that is said."""
    few = jsonl(tmp_path / "few.jsonl", [{"dialog": ["Hi.", "Ho.", "Ha."]}])
    assert len(load([f"data.path={few}", "data=dialogue", "data.turns=2"]).examples("all")) == 1
    with pytest.raises(UserError, match=r"data=dialogue: .*(no|none of its 1) conversation"):
        load([f"data.path={jsonl(tmp_path / 'short.jsonl', [{'dialog': ['Hi.', 'Ho.']}])}", "data=dialogue"]).examples("all")


def test_books(tmp_path: Path) -> None:
    book = tmp_path / "book.txt"
    book.write_text("One two three. " * 20)
    refused(Books(str(book)), r"the longest text of the test split has 1 chunk\(s\) of 48 words, and an example takes 12; lower ")
    assert Books(str(book), words=1, chunks=2).examples("test")  # control
    (tmp_path / "bad.txt").write_bytes(b"abc\xff")
    with pytest.raises(ValueError, match=r"not UTF-8 at offset 3") as told:
        Books(str(tmp_path / "bad.txt")).examples("test")
    assert "--errors" not in str(told.value)  # an option of `ccm stream`


def test_rows(tmp_path: Path) -> None:
    for name, text, message in (
        ("a.json", '{"a": 1}', r"a.json: needs a list of rows, got {'a': 1} \(dict\)"),
        ("b.json", "[]", r"b.json has no rows"),
        ("c.json", "[{}, 3]", r"c.json, row 2: needs an object"),
        ("d.jsonl", '{"a": 1}\n{"a', r"d.jsonl, line 2: not JSON .*, got '{\"a'"),
        ("deep.jsonl", '{"a": 1}\n' + "[" * 100_000 + "]" * 100_000, r"deep.jsonl, line 2: not JSON \(nested too deeply\)"),
        ("deep.json", "[" * 100_000 + "]" * 100_000, r"deep.json: not JSON \(nested too deeply\)"),
        ("long.jsonl", '{"a": ' + "9" * 5000 + "}", r"long.jsonl, line 1: not JSON \(a number of thousands of digits\)"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=message):
            rows_of(tmp_path / name)
    (tmp_path / "e.jsonl").write_text('\ufeff{"a": 1}\n', encoding="utf-8")
    assert rows_of(tmp_path / "e.jsonl") == [(f"{tmp_path / 'e.jsonl'}, line 1", {"a": 1})]


def test_annotations_of_which_none_is_right(tmp_path: Path) -> None:
    """Training, annotating and all else say that, and not that there is nothing to train on."""
    rows = [{"question": f"{i} + 1?", "answer": "7", "reasoning_with_compression": "I do not know. <COMP>"} for i in range(20)]
    config = load(["data=gsm8k", f"data.path={jsonl(tmp_path / 'a.jsonl', rows)}"])
    for split in ("train", "all"):
        with pytest.raises(UserError, match=rf"data=gsm8k: none of the \d+ rows of the {split} split is left, because the final answer"):
            config.examples(split)
    assert not config.examples("validation")  # a training goes on without one
    rows[0] |= {"question": "3 + 4?", "reasoning_with_compression": "3 + 4 = 7 <COMP>\n#### 7"}
    one = load(["data=gsm8k", f"data.path={jsonl(tmp_path / 'b.jsonl', rows)}"])
    assert len(one.examples("all")) == 1 and one.dropped("all") == 19  # control
