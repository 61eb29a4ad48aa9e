"""What every dataset promises, over the open folder; and what the written ones read and refuse. Offline: no network, no model."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest

from context_memory import plugins
from context_memory.data._answers import numbers
from context_memory.data.base import Dataset
from context_memory.data.gsm8k import Gsm8k, uncomp
from context_memory.data.gsm_symbolic import GsmSymbolic
from context_memory.data.tally import Tally, operands
from context_memory.text import Example

KEYS = plugins.keys("data")
SPLITS = ("train", "validation", "test")
SMALL = {"train": 60, "validation": 20, "test": 20}


def generated(key: str) -> Dataset:
    """A small dataset that needs nothing but itself; those that read files have tests of their own."""
    names = {f.name for f in dataclasses.fields(plugins.find("data", key))}
    if not set(SMALL) <= names:
        pytest.skip(f"{key} reads files")
    return plugins.make("data", key, **SMALL)  # type: ignore[return-value]


@pytest.mark.parametrize("key", KEYS)
def test_target_scores_perfectly_and_a_wrong_answer_does_not(key: str) -> None:
    kind = plugins.find("data", key)
    assert len(kind.samples) == 3
    dataset = kind()
    for example in kind.samples:
        scores = dataset.score(example, example.target)
        assert scores["correct"] == 1.0
        assert all(0.0 <= value <= 1.0 for value in scores.values())
        assert dataset.score(example, "I would rather not say.")["correct"] == 0.0
        assert dataset.score(example, "")["correct"] == 0.0


@pytest.mark.parametrize("key", KEYS)
def test_splits_are_disjoint_deterministic_and_scored(key: str) -> None:
    dataset = generated(key)
    texts = {}
    for split in SPLITS:
        examples = dataset.examples(split)
        assert len(examples) == SMALL[split]
        assert [dataset.score(e, e.target)["correct"] for e in examples] == [1.0] * len(examples)
        texts[split] = {e.prompt for e in examples}
        again = dataclasses.replace(dataset).examples(split)  # type: ignore[type-var]
        assert [e.target for e in again] == [e.target for e in examples]
    assert not texts["train"] & texts["test"]
    assert not texts["train"] & texts["validation"]
    assert not texts["validation"] & texts["test"]
    with pytest.raises(ValueError, match="has the splits"):
        dataset.examples("trian")


@pytest.mark.parametrize("key", KEYS)
def test_another_seed_gives_other_problems(key: str) -> None:
    dataset = generated(key)
    other = dataclasses.replace(dataset, seed=1)  # type: ignore[type-var]
    assert dataset.examples("test")[0].prompt != other.examples("test")[0].prompt


def test_tally_numbers_stay_small_and_its_steps_follow_from_earlier_ones() -> None:
    kinds = set()
    assert len([*Tally(min_steps=2, max_steps=2, test=200).examples("test")]) == 200  # nothing before the last but what is given
    for example in Tally(min_steps=3, max_steps=12, test=200).examples("test"):
        steps = example.meta["steps"]
        lines = example.target.split("\n")
        assert 3 <= len(steps) == len(lines) - 1 <= 12
        assert lines[-1] == f"#### {steps[-1]['result']}"
        for i, (step, line) in enumerate(zip(steps, lines, strict=False)):
            assert 0 <= step["result"] <= 99
            assert operands(line) == step["operands"]
            assert numbers(line)[-1] == step["result"]
            assert [steps[i - d]["result"] for d in step["distances"]] == list(step["operands"][: len(step["distances"])])
            kinds.update(step["distances"])
        assert all(step["distances"] for step in steps[1:])
    assert set(range(1, 9)) <= kinds


def test_tally_splits_share_no_numbers_under_any_settings() -> None:
    train = {repr(e.meta["steps"]) for e in Tally(max_steps=3, train=2000).examples("train")}
    test = {repr(e.meta["steps"]) for e in Tally(max_steps=4, seed=5, test=300).examples("test")}
    assert not train & test


def test_tally_tells_forgetting_from_slips() -> None:
    tally = Tally()
    steps = ({"result": 13, "operands": (9, 4), "distances": ()}, {"result": 26, "operands": (13, 2), "distances": (1,)})
    example = Example("", "9 + 4 = 13, so Mia has 13.\n13 * 2 = 26, so Tom has 26.\n#### 26", meta={"steps": steps, "answer": 26})
    assert tally.score(example, example.target) == {"correct": 1.0, "steps": 1.0, "distance_1": 1.0}
    slip = "9 + 4 = 14, so Mia has 14.\n14 * 2 = 28, so Tom has 28.\n#### 28"
    assert tally.score(example, slip) == {"correct": 0.0, "steps": 0.0, "distance_1": 1.0}
    forgot = "9 + 4 = 13, so Mia has 13.\n15 * 2 = 30, so Tom has 30.\n#### 30"
    assert tally.score(example, forgot) == {"correct": 0.0, "steps": 0.5, "distance_1": 0.0}
    assert tally.score(example, "9 + 4 = 13, so Mia has 13.\n#### 26") == {"correct": 1.0, "steps": 0.5, "distance_1": 0.0}


def test_tally_problems_are_made_when_asked_for() -> None:
    problems = Tally(train=10**9).examples("train")
    assert len(problems) == 10**9
    assert problems[10**9 - 1].id == problems[-1].id
    assert [e.id for e in problems[5:7]] == ["tally/train/5", "tally/train/6"]
    with pytest.raises(IndexError):
        problems[10**9]


@pytest.mark.parametrize("settings", [{"min_steps": 5, "max_steps": 4}, {"max_steps": 13}, {"distractors": 99}, {"distractors": -1}])
def test_tally_refuses_settings_that_cannot_be(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="tally"):
        Tally(**settings)


PLAIN = [{"question": f"What is {i} + 1?", "answer": f"It is {i} + 1 = <<{i}+1={i + 1}>>{i + 1}.\n#### {i + 1}"} for i in range(200)]


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    return path


def test_gsm8k_folder(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", PLAIN)
    (tmp_path / "test.json").write_text(json.dumps([{"question": "What is 1?", "answer": "#### 1,000"}]), encoding="utf-8")
    data = Gsm8k(path=str(tmp_path))
    parts = {split: data.examples(split) for split in SPLITS}
    assert len(parts["train"]) + len(parts["validation"]) == 200
    assert not {e.prompt for e in parts["train"]} & {e.prompt for e in parts["validation"]}
    assert 0 < len(parts["validation"]) < 30
    assert parts["test"][0].meta["answer"] == 1000
    assert "<<" not in parts["train"][0].target
    assert data.dropped("train") == 0


def test_gsm8k_single_file_is_carved(tmp_path: Path) -> None:
    data = Gsm8k(path=str(write(tmp_path / "all.jsonl", PLAIN)))
    prompts = [e.prompt for split in SPLITS for e in data.examples(split)]
    assert sorted(prompts) == sorted(row["question"] for row in PLAIN)


def test_gsm8k_without_a_path_looks_into_ccm_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gsm8k").mkdir()
    write(tmp_path / "gsm8k" / "test.jsonl", PLAIN[:3])
    monkeypatch.setenv("CCM_DATA", str(tmp_path))
    assert len(Gsm8k().examples("test")) == 3


def test_gsm8k_annotations_become_cuts_and_wrong_ones_are_dropped(tmp_path: Path) -> None:
    right = {
        "question": "2 + 2 + 2?",
        "reasoning_with_compression": "2 + 2 = 4 <COMP>\n\n4 + 2 = 6<COMP> <COMP>\n#### 6",
        "answer": "6",
    }
    wrong = right | {"question": "2 + 2 + 3?", "answer": "7"}
    rows = [dict(right, question=f"{right['question']} ({i})") for i in range(20)] + [dict(wrong, question=f"{i}") for i in range(20)]
    data = Gsm8k(path=str(write(tmp_path / "annotated.jsonl", rows)))
    kept = [e for split in SPLITS for e in data.examples(split)]
    assert len(kept) == 20
    assert sum(data.dropped(split) for split in SPLITS) == 20
    assert kept[0].target == "2 + 2 = 4 \n\n4 + 2 = 6 \n#### 6"
    assert kept[0].cuts == (10, 21)


def test_a_trace_is_read_to_the_letter_and_answer_gives_its_number(tmp_path: Path) -> None:
    said = [" It is <<1+1=2>>2 <COMP>: \\boxed{2}\n\n", "#### Step 1\nThe answer is 2.", "1 + 1 = 2 apples."]
    wrong = ["\\boxed{3}", "1 + 1 = 2 app", "2\n#### 3", ""]
    rows = [{"question": f"{i}: 1 + 1?", "answer": "#### 2", "original_reasoning": text} for i, text in enumerate([*said, *wrong])]
    rows += [rows[0] | {"question": "7: 1 + 1?", "answer": "2"}]
    data = Gsm8k(path=str(write(tmp_path / "traces.jsonl", rows)))
    kept = {e.prompt: e for split in SPLITS for e in data.examples(split)}
    assert [kept[f"{i}: 1 + 1?"].target for i in (0, 1, 2, 7)] == [*said, said[0]]
    assert sum(data.dropped(split) for split in SPLITS) == 4 and len(kept) == 4
    assert all(e.meta["answer"] == 2 and not e.cuts for e in kept.values())
    both = rows[0] | {"reasoning_with_compression": "1 + 1<COMP> = 2\n#### 2"}  # the seed family's: its own words come second
    (example,) = (e for split in SPLITS for e in Gsm8k(path=str(write(tmp_path / "both.jsonl", [both]))).examples(split))
    assert (example.target, example.cuts) == ("1 + 1 = 2\n#### 2", (5,))


def test_a_marker_is_a_marker_in_annotated_rows_only(tmp_path: Path) -> None:
    rows = [{"question": f"{i}: what does <COMP> mean?", "answer": "<COMP> is text.\n#### 1"} for i in range(20)]
    example = Gsm8k(path=str(write(tmp_path / "plain.jsonl", rows))).examples("train")[0]
    assert example.target == "<COMP> is text.\n#### 1"
    assert "<COMP>" in example.prompt
    assert example.cuts == ()


def test_cuts_lose_nothing() -> None:
    text = "a <COMP>b<COMP>\n\nc <COMP>"
    target, cuts = uncomp(text)
    assert target == text.replace("<COMP>", "")
    assert cuts == (2, 3)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.jsonl", '{"question": "a", "answer": "#### 1"}\n{"question": \n', "a.jsonl, line 2: not JSON"),
        (
            "b.jsonl",
            '{"question": "a", "answer": "#### 1"}\n\n{"question": "a"}',
            "b.jsonl, line 3: needs a text 'answer', got nothing; have: question",
        ),
        ("c.jsonl", '{"question": "a", "answer": "one"}', "c.jsonl, line 1: no final number"),
        ("d.jsonl", "[1, 2]", "d.jsonl, line 1: needs an object"),
        ("f.jsonl", '{"question": "a", "answer": " "}', "line 1: needs a text 'answer', got ' '"),
        ("g.jsonl", '{"question": "a", "answer": 72}', "line 1: needs a text 'answer', got 72 .int."),
        ("h.jsonl", '{"question": "a", "answer": "2", "original_reasoning": 5}', "needs a text 'original_reasoning', got 5 .int."),
        ("i.jsonl", '{"question": "a", "answer": "2", "original_reasoning": null}', "is a number alone .'2'. and there is no sol"),
        ("e.json", '[{"question": "a",\n "answer": }]', "e.json, line 2: not JSON"),
    ],
)
def test_gsm8k_names_file_and_line_of_what_is_broken(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=said):
        Gsm8k(path=str(tmp_path / name)).examples("train")


def test_one_name_in_two_folders_is_two_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder, number in (("a", 3), ("b", 5)):
        (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path / folder)
        Path("my.jsonl").write_text("".join(f'{{"question": "{i}?", "answer": "#### {number}"}}\n' for i in range(40)))
        assert {e.meta["answer"] for e in Gsm8k("my.jsonl").examples("train")} == {number}


def test_gsm8k_says_what_a_folder_or_path_lacks(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no train\.jsonl or train\.json"):
        Gsm8k(path=str(tmp_path)).examples("train")
    with pytest.raises(ValueError, match="does not exist"):
        Gsm8k(path=str(tmp_path / "nothing")).examples("train")


def test_gsm_symbolic_has_a_step_a_line() -> None:
    for example in GsmSymbolic(train=200).examples("train"):
        lines = example.target.split("\n")
        assert len(lines) > 1
        assert all(line == line.strip() and line for line in lines)
        assert lines[-1].startswith("#### ")


def test_gsm_symbolic_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ImportError, match=r"context-memory\[gym\]"):
        GsmSymbolic(seed=991).examples("test")
