"""Files of others, in the shape in which they were published: LaMP's tasks, MetaICL's folders, the forms of a conversation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from context_memory.data._lamp import SECTIONS, TAGS, Entry
from context_memory.data.dialogue import Dialogue
from context_memory.data.fact import Fact
from context_memory.data.icl import Icl
from context_memory.data.personal import Personal, closest

LAMP: Mapping[str, tuple[int, str, dict[str, str], str, str, str, tuple[str, ...]]] = {
    "citation": (
        1,
        'For an author who has written the paper with the title "Lip reading", which reference is related? Just answer with [1] or [2] '
        'without explanation. [1]: "Visual speech" [2]: "Compilers"',
        {"id": "11", "title": "Hearing lips", "abstract": "We see\nwhat we hear."},
        "[1]", "Hearing lips We see what we hear.", "", ("[1]", "[2]"),
    ),
    "film": (
        2,
        "Which tag does this movie relate to among the following tags? Just answer with the tag name without further explanation. "
        f"tags: [{', '.join(TAGS)}] description: A robot falls in love.",
        {"id": "21", "tag": "dark comedy", "description": "Two killers argue about lunch."},
        "sci-fi", "Two killers argue about lunch.", "dark comedy", TAGS,
    ),
    "news": (
        2,
        "Which category does this article relate to among the following categories? Just answer with the category name without further "
        f"explanation. categories: [{', '.join(SECTIONS)}] article: Beets are full of vitamins.",
        {"id": "22", "title": "On the road", "text": "Ten towns to see in May.", "category": "travel"},
        "food & drink", "Ten towns to see in May.", "travel", SECTIONS,
    ),
    "review": (
        3,
        "What is the score of the following review on a scale of 1 to 5? just answer with 1, 2, 3, 4, or 5 without further explanation. "
        "review: It broke on the first day.",
        {"id": "31", "text": "Does what it should.", "score": "4"},
        "1", "Does what it should.", "4", ("1", "2", "3", "4", "5"),
    ),
    "headline": (
        4,
        "Generate a headline for the following article: The bridge was closed on Monday.",
        {"id": "41", "text": "Rain is expected.", "title": "Take an\numbrella"},
        "Bridge closed", "Rain is expected.", "Take an umbrella", (),
    ),
    "paper": (
        5,
        "Generate a title for the following abstract of a paper: We sort faster.",
        {"id": "51", "title": "Slow sorting", "abstract": "We sort slowly."},
        "Fast sorting", "We sort slowly.", "Slow sorting", (),
    ),
    "e-mail": (
        6,
        "Generate a subject for the following email: Shall we meet at noon?",
        {"id": "61", "text": "The build is red again.", "title": "Build failure of today"},
        "Lunch on Friday", "The build is red again.", "Build failure of today", (),
    ),
    "tweet": (
        7,
        "Paraphrase the following tweet without any explanation before or after it: It is late.",
        {"id": "71", "text": "cant sleep lol"},
        "sooo late rn", "cant sleep lol", "", (),
    ),
}  # fmt: skip
"""Task, question, entry of the profile, answer; and what the entry is: its text, its label; and the options."""


def lamp(folder: Path, task: int, questions: Sequence[tuple[str, Sequence[Any], str]], split: str = "dev") -> Personal:
    rows = [{"id": f"{task}{i}", "input": asked, "profile": profile} for i, (asked, profile, _) in enumerate(questions)]
    golds = [{"id": f"{task}{i}", "output": answer} for i, (_, _, answer) in enumerate(questions)]
    folder.mkdir(exist_ok=True)
    (folder / f"{split}_questions.json").write_text(json.dumps(rows))
    (folder / f"{split}_outputs.json").write_text(json.dumps({"task": f"LaMP_{task}", "golds": golds}))
    return Personal(str(folder), f"LaMP-{task}")


@pytest.mark.parametrize("name", LAMP)
def test_every_task_of_lamp(name: str, tmp_path: Path) -> None:
    task, asked, entry, answer, text, label, options = LAMP[name]
    data = lamp(tmp_path, task, [(asked, [entry, {**entry, "date": "2014-01-01"}], answer)])
    (e,) = data.examples("test")
    assert (e.prompt, e.target, e.options) == (asked, answer, options)
    assert e.context == (f"{text}\n{label}\n" if label else text,) * 2
    assert [c[at:] for c, at in zip(e.context, e.learn, strict=True) if at >= 0] == ([f"{label}\n"] * 2 if label else [])
    assert data.score(e, answer)["correct"] == 1 and data.score(e, "something else")["correct"] == 0
    assert (data.classes(e, answer) is None) is (not options)
    lamp(tmp_path, task, [(asked, [entry], answer)] * 40, "train")
    assert [len(data.examples(s)) for s in ("train", "validation")] == [38, 2]


def test_the_two_lamp_2_have_labels_of_their_own(tmp_path: Path) -> None:
    assert len(set(TAGS)) == len(set(SECTIONS)) == 15 and not set(TAGS) & set(SECTIONS)
    for name, other in (("film", "politics"), ("news", "romance")):
        _, asked, entry, answer, *_ = LAMP[name]
        with pytest.raises(ValueError, match=f"output '{other}' must be one of the options"):
            lamp(tmp_path / f"{name} a", 2, [(asked, [entry], other)]).examples("test")
        mixed = lamp(tmp_path / f"{name} b", 2, [(asked, [], answer), (asked, [entry], answer)])  # the first profile tells nothing
        with pytest.raises(ValueError, match="question 20: the profile is empty"):
            mixed.examples("test")


def test_subjects_of_emails(tmp_path: Path) -> None:
    mail = {"text": "The build is red.", "subject": "Build"}
    (e,) = lamp(tmp_path, 6, [("Generate a subject", [mail, mail | {"title": "Red"}, mail | {"subject": ""}], "Lunch")]).examples("test")
    assert e.context == ("The build is red.\nBuild\n", "The build is red.\nRed\n", "The build is red.") and e.learn == (18, 18, -1)
    with pytest.raises(ValueError, match="profile entry 1: needs a text 'title', got nothing; have: text"):
        lamp(tmp_path / "other", 6, [("Generate a subject", [{"text": "The build is red."}], "Lunch")]).examples("test")


def test_bm25_falls_back_to_the_recent_entries() -> None:
    for texts, question, k, found in (
        (["V", "9", "X"], "Which film?", 2, ["9", "X"]),  # single characters
        (["the", "of it", "and"], "Which film?", 2, ["of it", "and"]),  # stop words
        ([f"Film {i}{i}" for i in range(300)], "zebra", 3, ["Film 297297", "Film 298298", "Film 299299"]),
        ([f"Film {i}{i}" for i in range(300)], "of the", 2, ["Film 298298", "Film 299299"]),
        (["V", "Alien film", "9"], "alien", 5, ["V", "Alien film", "9"]),
        (["V", "Alien film", "9", "X"], "alien", 1, ["Alien film"]),  # control: it does rank
    ):
        assert [e.text for e in closest([Entry(t) for t in texts], question, k)] == found


SEEDS = (100, 13, 21, 42, 87)


def metaicl(root: Path) -> Icl:
    """`met` to train on, as MetaICL writes it (without a test part), and `new` to test on."""

    def write(task: str, shots: int, seed: int, part: str, n: int) -> None:
        rows = [{"task": task, "input": f"{part} {shots} {seed} {i}", "output": "a", "options": ["a", "b", "a"]} for i in range(n)]
        (root / task).mkdir(exist_ok=True)
        (root / task / f"{task}_{shots}_{seed}_{part}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))

    write("met", 16384, 100, "train", 40)
    write("met", 16384, 100, "dev", 0)
    for seed in SEEDS:
        write("new", 16, seed, "train", 16)
        write("new", 16, seed, "dev", 16)
        write("new", 16, seed, "test", 8)
    (root / "hr_to_lr.json").write_text(json.dumps({"train": ["met"], "test": ["new"], "unseen_domain_test": []}))
    return Icl(str(root), str(root / "hr_to_lr.json"), train=30, seeds=5)


@pytest.mark.parametrize("k", [16, 4, 0])
def test_a_seed_of_metaicl_is_its_file(k: int, tmp_path: Path) -> None:
    data = replace(metaicl(tmp_path), k=k)
    test = data.examples("test")
    assert [e.context for e in test] == [tuple(f"train 16 {seed} {i}\na\n" for i in range(k)) for seed in SEEDS for _ in range(8)]
    assert [e.prompt for e in test] == [f"test 16 100 {i}" for i in range(8)] * 5
    assert replace(data, seeds=1).examples("test") == test[:8] == replace(data, seeds=1, seed=3).examples("test")
    assert {e.options for e in test} == {("a", "b")}  # an option that is said twice
    with pytest.raises(ValueError, match=r"task 'new' has demonstrations of 5 seed\(s\), one a file, and seeds is 6; lower it"):
        replace(data, seeds=6).examples("test")


def test_tasks_of_metaicl_to_train_on_have_no_test_part(tmp_path: Path) -> None:
    data = metaicl(tmp_path)
    train, validation = data.examples("train"), data.examples("validation")
    asked = [f"train 16384 100 {i}" for i in (0, 20)]
    assert [e.prompt for e in validation] == asked * 5 and len({e.context for e in validation}) == 5
    assert not any(f"{a}\n" in c for a in asked for e in (*train, *validation) for c in e.context) and not {e.prompt for e in train} & set(
        asked
    )
    (tmp_path / "met" / "met_16_13_train.jsonl").write_text('{"input": "few", "output": "a"}\n')  # as of a task to test on as well
    (tmp_path / "met" / "met_16_13_test.jsonl").write_text('{"input": "asked", "output": "a"}\n')
    other = replace(data, path=f"{tmp_path}/.")  # read anew
    assert {e.prompt for e in other.examples("validation")} == {"asked"}
    assert all("16384" in part for e in other.examples("train") for part in (*e.context, e.prompt))


def test_an_option_said_twice_in_our_own_files(tmp_path: Path) -> None:
    row = {"input": "A delight.", "output": "good", "options": ["good", "bad", "good"]}
    for folder in ("train", "test"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "t.jsonl").write_text("".join(json.dumps(row | {"split": s}) + "\n" for s in ("train", "train", "test")))
    assert {e.options for s in ("train", "test") for e in Icl(str(tmp_path), train=2).examples(s)} == {("good", "bad")}


def test_forms_of_a_conversation(tmp_path: Path) -> None:
    turns = [f"Turn {i}." for i in range(14)]
    chat = [{"role": ("user", "assistant")[i % 2], "content": t} for i, t in enumerate(turns)]
    system, empty = {"role": "system", "content": "Be kind."}, {"role": "assistant", "content": " \n"}
    halves = [{"role": "user", "content": "Turn"}, {"role": "user", "content": "0."}]
    forms = [
        {"dialog": turns},
        {"dialogue": turns},
        {"turns": turns},
        {"dialog": None, "turns": turns},
        {"messages": chat},
        {"messages": [system, *chat[:3], {"role": "developer", "content": None}, *chat[3:], empty]},
        {"messages": [halves[0], system, empty, halves[1], *chat[1:]]},
        {"messages": [{"role": m["role"], "content": f" {m['content']}\n", "name": "x"} for m in chat]},
    ]
    (tmp_path / "mine").mkdir()
    for split in ("train", "test"):
        (tmp_path / "mine" / f"{split}.jsonl").write_text("".join(json.dumps(form) + "\n" for form in forms))
    test = Dialogue(str(tmp_path), "mine").examples("test")
    assert [(*e.context, e.prompt, e.target) for e in test] == [tuple(turns)] * len(forms)
    assert len(Dialogue(str(tmp_path), "mine").examples("train")) == len(Fact(str(tmp_path), "mine").examples("train")) == len(forms)
