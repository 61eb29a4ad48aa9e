"""A table says what the predictions say, in the terminal and in markdown; plots appear whole."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from context_memory import records, report
from context_memory.commands.compare import compare
from context_memory.errors import UserError
from context_memory.metrics import Prediction, summarise
from context_memory.records import Record, Store, gather

PNG = b"\x89PNG\r\n\x1a\n"
BASE = {"model": {"name": "m", "weights": "w"}, "task": "t"}


def lines(correct: Sequence[int], peak: int, nll: float) -> list[Prediction]:
    same = Prediction(
        "", "prompt", "target", answer="a", reason="eos", tokens=12, peak_kv=peak + 30, peak_reasoning_kv=peak, seconds=1.0,
        peak_kv_bytes=1000 * peak, target_peak=peak, target_tokens=40, nll=nll, nll_tokens=10, compressions=3,
    )  # fmt: skip
    found = [{"correct": float(c), "distance_1": c / 2, "distance_2": float(c)} for c in correct]
    return [replace(same, id=f"i/{i}", scores=scores) for i, scores in enumerate(found)]


ROWS = {
    "full": lines([1, 1, 1, 1, 0, 1, 1, 1], 40, 1.0),
    "concat": lines([1, 1, 0, 1, 0, 1, 1, 1], 10, 2.0),
    "nothing": lines([0, 0, 0, 0, 0, 0, 0, 1], 5, 11.0),
}


def written(at: Path, name: str, scheme: str | None = None, found: list[Prediction] | None = None, **settings: object) -> Path:
    """A finished row in a folder."""
    found = found or ROWS[name]
    store = Store(at, {**BASE, "scheme": {"name": scheme or name}, **settings})
    store.add(found[:3])
    store.finish(found, summarise(found, 8), {"name": name, "run": {"command": "ccm evaluate x", "commit": "abc", "kv_bytes": 8}})
    return at


@pytest.fixture
def evaluation(tmp_path: Path) -> Path:
    folder = tmp_path / "tally" / "mine" / "evaluation"
    for name in ROWS:
        written(folder / name, name)
    return folder


def test_table_by_hand(evaluation: Path, capsys: pytest.CaptureFixture[str]) -> None:
    joined = report.publish(gather([evaluation]), evaluation)
    full, concat, nothing = (report.cells(line) for line in joined)
    assert [c["row"] for c in (full, concat, nothing)] == ["full", "concat", "nothing"]
    assert concat["accuracy %"].startswith("75.0 [")
    assert concat["vs full, points"].startswith("-12.5 [") and concat["p"] == "1.000"
    assert [concat[c] for c in ("peak KV", "of full %", "same text %")] == ["10.0", "25.0", "25.0"]
    assert (concat["gap closed %"], concat["NLL"]) == ("90.0 [90.0, 90.0]", "0.2000 [0.2000, 0.2000]")  # every item is alike
    assert (concat["with prompt"], concat["MB"], concat["tokens/s"]) == ("40.0", "0.01", "12")
    assert nothing["gap closed %"] == "0.0" and nothing["p"] == "0.031"
    assert full["of full %"] == "100.0" and full["vs full, points"] == full["p"] == ""
    shown = capsys.readouterr().out
    text = (evaluation / "table.md").read_text()
    for piece in ("concat", "90.0", "distance_2", "75.0"):
        assert piece in shown and piece in text
    assert "`ccm evaluate x` (commit abc)" in text and "None" not in text
    own = json.loads((evaluation / "concat" / records.METRICS).read_text())
    assert own["versus_full"]["kv_ratio"] == 0.25 and own["scores"]["correct"]["mean"] == 0.75
    assert [row["name"] for row in json.loads((evaluation / "table.json").read_text())] == ["full", "concat", "nothing"]
    for name in ("plot.png", "distance.png"):
        assert (evaluation / name).read_bytes()[:8] == PNG
    assert not [p for p in evaluation.rglob("*") if "partial" in p.name]


def test_why_answers_are_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = ["9 + 4 = 13\n#### 13", "9 + 4 = 14\n#### 14", "9 + 7 = 16\n#### 16", "#### 9"]
    found = [
        replace(p, prompt="9 and 4?", target="9 + 4 = 13\n#### 13", answer=a, scores={"correct": float(i == 0)})
        for i, (p, a) in enumerate(zip(ROWS["full"], said))
    ]
    written(tmp_path / "full", "full", found=found)
    report.publish(gather([tmp_path / "full"]), tmp_path)
    text = (tmp_path / "table.md").read_text()
    assert "| row | wrong | lost number | arithmetic | wrong number | cut off | no answer |" in text
    assert "| full | 3 | 33.3 | 33.3 | 33.3 | 0.0 | 0.0 |" in text and "wrong answers: why" in capsys.readouterr().out
    (row,) = json.loads((tmp_path / "table.json").read_text())
    assert row["wrong"] == {"lost_number": 1, "arithmetic": 1, "wrong_number": 1, "cut_off": 0, "no_answer": 0}
    (right,) = report.join(gather([written(tmp_path / "right", "full")]))  # targets without a number: nothing can be said
    assert right.faults == {} and not [g for g in report.grids([right]) if "wrong" in g[0]]


def test_what_a_memory_gives_back_is_told_by_the_fault(tmp_path: Path) -> None:
    said = ["9 + 4 = 13\n#### 13", "9 + 4 = 14\n#### 14", "9 + 5 = 14\n9 + 4 = 12\n#### 12", "9 + 7 = 16\n#### 16"]
    found = [
        replace(p, prompt="9 and 4, or 5?", target="9 + 4 = 13\n#### 13", answer=a, scores={"correct": float(i == 0), "recall": share})
        for i, (p, a, share) in enumerate(zip(ROWS["full"], said, (1.0, 0.5, 0.25, 0.0)))
    ]
    written(tmp_path / "full", "full", found=found)
    report.publish(gather([tmp_path / "full"]), tmp_path)
    text, (row,) = (tmp_path / "table.md").read_text(), json.loads((tmp_path / "table.json").read_text())
    assert "| row | right | lost number | arithmetic |\n" in text and "| full | 100.0 (1) | 0.0 (1) | 37.5 [" in text
    assert {kind: (e["mean"], e["n"]) for kind, e in row["recalled"].items()} == {
        "right": (1, 1),
        "lost_number": (0, 1),
        "arithmetic": (0.375, 2),
    }
    assert "what the memory gives back when their line is begun again" in text


def test_only_columns_that_are_there_are_explained(evaluation: Path, tmp_path: Path) -> None:
    table = report.markdown(report.join(gather([evaluation])))
    assert "live bytes of keys and values" in table and "first fault" not in table and "macro" not in table
    chosen = [replace(line, reason="chosen", classes=("", "good", "bad")) for line in lines([1, 0], 9, 1.0)]
    written(tmp_path, "full", found=chosen)
    assert "interval by bootstrap over items" in report.markdown(report.join(gather([tmp_path])))


def test_rows_without_a_full_one_stand_alone(tmp_path: Path) -> None:
    (line,) = report.join(gather([written(tmp_path / "a", "concat")]))
    found = report.cells(line)
    assert line.versus is None and found["of full %"] == found["gap closed %"] == "" and found["accuracy %"]


def test_another_model_is_no_reference(tmp_path: Path, evaluation: Path) -> None:
    other = written(tmp_path / "b", "other", "concat", ROWS["concat"], task="another")
    joined = {line.record.name: line for line in report.join(gather([evaluation, other]))}
    assert joined["other"].versus is None and joined["concat"].versus is not None


def test_a_full_row_of_another_model_that_is_named(tmp_path: Path, evaluation: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All are compared with it, their own full row too; and without it, with their own."""
    tuned = written(tmp_path / "tuned", "full", found=lines([1] * 8, 20, 1.0), task="another")
    named, own = (
        {line.record.folder: report.cells(line) for line in report.join(gather([evaluation, tuned]), against)}
        for against in (gather([tuned]), [])
    )
    concat, full = evaluation / "concat", evaluation / "full"
    assert named[concat]["vs full, points"].startswith("-25.0 [") and named[concat]["of full %"] == "50.0"
    assert named[full]["vs full, points"].startswith("-12.5 [") and named[full]["of full %"] == "200.0"
    assert named[tuned]["vs full, points"] == named[tuned]["p"] == "" and named[tuned]["of full %"] == "100.0"
    assert own[concat]["vs full, points"].startswith("-12.5 [") and own[full]["vs full, points"] == ""
    compare([evaluation], tmp_path / "out", tuned)
    assert "-25.0 [" in (tmp_path / "out" / "table.md").read_text() and "-25.0" in capsys.readouterr().out
    without = tmp_path / "without"
    for name in ("concat", "nothing"):
        written(without / name, name)
    with pytest.raises(UserError, match="holds concat, nothing and none of them is full; name the folder"):
        compare([evaluation], tmp_path / "out", without)


def test_any_row_may_be_what_others_are_compared_with(tmp_path: Path, evaluation: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A window, say: differences in points and nats under its name, and no share of a gap that it is no end of."""
    window = written(tmp_path / "window", "window 7", "window", lines([1, 1, 0, 0, 0, 1, 1, 0], 20, 3.0))
    found = {line.record.name: report.cells(line) for line in report.join(gather([evaluation, window]), gather([window]))}
    concat = found["concat"]
    assert concat["vs full, points"].startswith("+25.0 [") and concat["vs full, nats"] == "-0.1000 [-0.1000, -0.1000]"
    assert concat["of full %"] == "50.0" and concat["gap closed %"] == concat["gap closed, points %"] == ""
    assert found["window 7"]["vs full, points"] == found["window 7"]["vs full, nats"] == ""
    compare([evaluation, window], tmp_path / "out", window)
    text = (tmp_path / "out" / "table.md").read_text()
    assert "vs window 7, points" in text and "vs window 7, nats" in text and "of window 7 %" in text and "vs full" not in text
    assert "vs window 7, nats" in capsys.readouterr().out
    compare([evaluation], tmp_path / "own")  # without it, all as before
    assert "nats" not in (tmp_path / "own" / "table.md").read_text()


def test_a_difference_says_of_how_many_items_it_is(tmp_path: Path) -> None:
    rows = [written(tmp_path / name, name, found=ROWS[name][:n]) for name, n in (("full", 4), ("concat", 8))]
    assert [report.cells(line)["n"] for line in report.join(gather(rows))] == ["4", "8 (4 compared)"]


def test_all_of_a_folder_may_be_named(tmp_path: Path, evaluation: Path) -> None:
    """`FOLDER/*` names its tables and plots as well as its rows."""
    compare([evaluation], evaluation)
    assert any(p.is_file() for p in evaluation.iterdir())
    compare(sorted(evaluation.iterdir()), tmp_path / "out")
    assert (tmp_path / "out" / "table.md").read_text() == (evaluation / "table.md").read_text()
    with pytest.raises(UserError, match=r"table.md' is a file; give a folder"):
        compare([evaluation / "table.md"], tmp_path / "out")


def test_runs_are_gathered_once_and_told_apart(tmp_path: Path, evaluation: Path) -> None:
    second = tmp_path / "tally" / "yours" / "evaluation"
    written(second / "full", "full")
    written(second / "concat", "concat", "concat", found=[replace(p, answer="b") for p in ROWS["concat"]], adapter={"a": "b"})
    names = [r.name for r in gather([evaluation, second])]
    assert names == ["full", "mine: concat", "yours: concat", "nothing"]
    out = tmp_path / "elsewhere"  # a folder of --out is not called "evaluation"
    written(out / "concat", "concat", "concat", found=[replace(p, answer="c") for p in ROWS["concat"]], adapter={"c": "d"})
    assert [r.name for r in gather([evaluation, out])] == ["full", "mine: concat", "elsewhere: concat", "nothing"]


def test_what_is_not_there_or_damaged_is_said(tmp_path: Path, evaluation: Path) -> None:
    with pytest.raises(UserError, match=r"'.*none' is not there; give a folder that ccm evaluate wrote"):
        gather([tmp_path / "none"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no finished evaluation"):
        gather([tmp_path / "empty"])
    file = evaluation / "concat" / records.LINES
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(UserError, match=r"has 7 whole lines, metrics.json counts 8"):
        gather([evaluation])
    (evaluation / "concat" / records.METRICS).write_text("{")
    with pytest.raises(UserError, match=r"metrics\.json is damaged"):
        gather([evaluation])


def test_record_says_what_it_was(evaluation: Path) -> None:
    record: Record = records.read(evaluation / "concat")
    assert (record.name, record.scheme, record.kv_bytes, len(record.lines)) == ("concat", "concat", 8, 8)
    assert record.lines == tuple(ROWS["concat"])


def test_a_row_is_compared_after_the_same_contexts(tmp_path: Path) -> None:
    """One set of questions after one demonstration and after three: the same items, with an upper bound each."""
    rows = []
    for k, full in (("1", [0, 0, 0, 0, 0, 0, 0, 0]), ("3", [1, 1, 1, 1, 1, 1, 1, 1])):
        for scheme, correct in (("full", full), ("concat", [0, 1, 0, 1, 0, 1, 0, 1])):
            found = [replace(p, asked=f"{k} {p.id}") for p in lines(correct, 10, 1.0)]
            rows.append(written(tmp_path / k / scheme, scheme, found=found, k=k))
    differences = {line.record.folder: line.versus.difference for line in report.join(gather(rows)) if line.versus and not line.itself}
    assert {folder.parent.name: d.mean for folder, d in differences.items() if d} == {"1": 0.5, "3": -0.5}
