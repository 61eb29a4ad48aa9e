"""`ccm boundary train|evaluate`, on a tiny model: what is learnt, kept beside the adapter, used from there, and refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import toys
from context_memory import head, telling
from context_memory.adapter import read_card
from context_memory.boundaries.classifier import FILE
from context_memory.boundaries.newline import Newline
from context_memory.cli import main
from context_memory.data.tally import Tally
from context_memory.encode import Encoder
from context_memory.model import CompressedLM

torch.set_num_threads(1)


def run(*arguments: str) -> None:
    """A command that ends well."""
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    assert not stopped.value.code


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny model, and a compression adapter with a classifier that was trained on it."""
    at = tmp_path_factory.mktemp("told")
    model = toys.folder(at / "model")
    _, adapter = toys.adapters(at, model)
    learn = ["--problems", "30", "--epochs", "20", "--lr", "3e-3"]
    run("boundary", "train", "--adapter", str(adapter), f"model={model}", *learn, "data.max_steps=4", "boundary=newline")
    return model, adapter


def fails(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The message of a command that ends with exit code 2."""
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


def test_what_is_learnt_is_kept_and_told(made: tuple[Path, Path]) -> None:
    _, adapter = made
    report = json.loads((adapter / "classifier.json").read_text())
    assert (report["all_problems"], report["problems"]) == (30, 3) and report["tokens"] > 100
    assert report["auc"] > 0.9  # a line end is plain to see in any hidden state
    assert sum(report["follows_labels"].values()) == pytest.approx(1)
    assert (adapter / "classifier.png").read_bytes()[:4] == b"\x89PNG"
    _, facts = head.load(adapter / FILE)
    assert facts["weights"] == read_card(adapter).base.weights and 0 < facts["tau"] < 1
    assert report["tau"] == report["chosen"]["tau"] == facts["tau"]  # found on other problems than those of the report
    for value, (low, high) in ((report["auc"], report["auc_interval"]), (report["chosen"]["f1"], report["chosen"]["f1_interval"])):
        assert 0 <= low <= value <= high <= 1


def test_it_is_loaded_with_its_adapter(made: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, adapter = made
    size = [f"model={model}", "evaluation.max_samples=2", "generation.max_new_tokens=48", "data.max_steps=3"]
    chosen = ["boundary=classifier", "boundary.tau=0.3"]
    run("evaluate", "--adapter", str(adapter), *chosen, "--alone", "--out", str(tmp_path / "a"), *size)
    settings = json.loads((tmp_path / "a" / "concat" / "settings.json").read_text())
    assert settings["boundary"]["path"] == head.digest(adapter / FILE) and settings["boundary"]["tau"] == 0.3
    run("boundary", "evaluate", "--adapter", str(adapter), "--problems", "10", f"model={model}", "data.max_steps=4", "boundary=newline")
    assert json.loads((adapter / "classifier-test.json").read_text())["auc"] > 0.9
    capsys.readouterr()


def test_a_model_that_is_loaded_by_hand_finds_it_too(made: tuple[Path, Path], tmp_path: Path) -> None:
    model, adapter = made
    mine = tmp_path / "mine"
    shutil.copytree(adapter.parent, mine)
    card = json.loads((mine / adapter.name / "ccm.json").read_text())
    card["config"]["boundary"] = {"name": "classifier", "tau": 0.4, "path": ""}
    (mine / adapter.name / "ccm.json").write_text(json.dumps(card))
    lm = CompressedLM.load(str(model), mine / adapter.name)
    assert lm.encoder.boundary.needs_hidden
    (out,) = lm.generate("What?", max_new_tokens=60)
    assert out.ids and lm.encoder.boundary.trained[1]["model"]  # type: ignore[attr-defined]


def test_what_cannot_work_is_said(made: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, adapter = made
    given = ["--adapter", str(adapter), f"model={model}", "--problems", "12"]
    assert "taught by a policy" in fails(["boundary", "train", *given, "boundary=classifier"], capsys)
    assert "ends in any of" in fails(["boundary", "train", *given, "boundary=turn"], capsys)
    assert "tau must be above 0 and below 1" in fails(["evaluate", *given[:3], "boundary=classifier", "boundary.tau=2"], capsys)
    bare = tmp_path / "bare"
    shutil.copytree(adapter.parent, bare)
    (bare / adapter.name / FILE).unlink()
    again = ["evaluate", "--adapter", str(bare / adapter.name), f"model={model}", "boundary=classifier", "--out", str(tmp_path)]
    assert "nothing learnt at" in fails(again, capsys)
    head.save(head.Head(32), bare / adapter.name / FILE, {"model": "another", "weights": "x", "task": ""})
    assert "was trained on 'another'" in fails(again, capsys)
    with pytest.MonkeyPatch.context() as patch:  # before any solution is run
        patch.setattr(telling, "collect", None)
        judged = ["boundary", "evaluate", "--adapter", str(bare / adapter.name), f"model={model}", "--problems", "12"]
        assert "was trained on 'another'" in fails(judged, capsys)


def test_how_well_a_head_tells_by_hand() -> None:
    """Three problems of four tokens, the last one scored the wrong way round."""
    scores = torch.tensor([0.9, 0.1, 0.2, 0.1] * 2 + [0.1, 0.9, 0.9, 0.9])
    ends = torch.tensor([True, False, False, False] * 3)
    told = telling.Told(torch.zeros(12, 2), ends, torch.arange(3).repeat_interleave(4), ("calculation",) * 12)
    area, f1 = telling.area_of(scores, told), telling.f1_of(scores, told, 0.5)
    better = 2 * (6 + 3 * 0.5) + 0.5 * 4  # pairs: two boundaries above six tokens and level with three; one level with four, below five
    assert area.mean == pytest.approx(better / 27) and f1.mean == pytest.approx(2 * 2 / (5 + 3))
    assert (area.low, area.high) == (0.0, 1.0) and (f1.low, f1.high) == (0.0, 1.0)  # a draw may have one problem alone
    assert f1.mean == pytest.approx(telling.quality(scores, ends, 0.5).f1)
    none = replace(told, ends=torch.tensor([True, *[False] * 11]))  # a boundary in one problem of three: draws without it say nothing
    assert 0 <= telling.area_of(scores, none).low <= telling.area_of(scores, none).high <= 1


def test_problems_are_divided_and_not_tokens() -> None:
    problem = torch.arange(20).repeat_interleave(3)
    told = telling.Told(torch.zeros(60, 2), torch.zeros(60, dtype=torch.bool), problem, ("calculation",) * 60)
    parts = telling.divide(told)
    assert {n: len(set(p.problem.tolist())) for n, p in parts.items()} == {"train": 16, "validation": 2, "test": 2}
    assert sorted(i for p in parts.values() for i in set(p.problem.tolist())) == list(range(20))
    assert all(len(p.follows) == len(p.ends) == 3 * len(set(p.problem.tolist())) for p in parts.values())


def test_solutions_of_one_problem_are_one_problem(made: tuple[Path, Path]) -> None:
    """As `ccm traces --samples 5` writes them: or a question would be in two parts."""
    model, adapter = made
    lm = CompressedLM.load(str(model), adapter=adapter)
    problems = Tally(train=6).examples("train")
    encoder = Encoder(lm.tokenizer, Newline())
    told = telling.collect(lm, encoder, [replace(e, id=f"{e.id} {i}") for i in range(3) for e in problems[:2]])
    assert set(told.problem.tolist()) == {0, 1}
    lengths = [len(encoder.answer(e)) for e in problems[:2]]
    assert [int((told.problem == i).sum()) for i in (0, 1)] == [3 * n for n in lengths]


def test_an_adapter_takes_the_head_along_that_it_was_trained_with(
    made: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It lies beside another adapter here. What is learnt together with its task has other hidden states, and cannot be cut by it."""
    model, adapter = made
    size = [f"model={model}", "model.dtype=float32", "model.lora_r=2", "data.max_steps=3", "training.batch_size=2", "training.max_steps=1"]
    how = [f"model.adapter={adapter.parent / 'task'}", "boundary=classifier", f"boundary.path={adapter}"]
    command = ["train", *size, *how, "training.eval_samples=0", "training.wandb=false", f"output={tmp_path}"]
    run(*command, "run_id=on")
    on = tmp_path / "tally" / "on" / "adapter"
    assert head.digest(on / FILE) == head.digest(adapter / FILE)
    few = ["evaluation.max_samples=2", "evaluation.generate=false", "data.max_steps=3"]
    run("evaluate", "--adapter", str(on), f"model={model}", *few, "--alone", "--out", str(tmp_path / "out"))
    assert "was trained on another task adapter" in fails([*command, "model.joint=true", "run_id=joint"], capsys)
