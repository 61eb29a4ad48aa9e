"""What a hurried user types or feeds: said, and not answered with another model, another mask or nothing."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import toys
from context_memory import cli, rows
from context_memory.adapter import read_card
from context_memory.begun import Partial
from context_memory.compose import load
from context_memory.data.dialogue import Dialogue
from context_memory.data.gsm8k import Gsm8k
from context_memory.errors import UserError
from context_memory.output import Settings
from context_memory.records import Store, read


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A toy model, a task adapter, a compression adapter on top of it."""
    place = tmp_path_factory.mktemp("slips")
    toy = toys.folder(place / "toy")
    return toy, *toys.adapters(place, toy)


def said(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The error of a command, which ends with 2 and without a traceback."""
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    assert end.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["boundary=every,newline"], r"boundary= takes one name, got every, newline; for a row of each: .*--sweep boundary=a,b"),
        (["scheme=[concat,merge]"], r"scheme= takes one name"),
        (["scheme="], r"scheme= takes one name, got none"),
        (["training.warmup=100"], r"training\.warmup must be at most 1, a share, got 100"),
        (["data.train_ratio=80"], r"data\.train_ratio must be at most 1, a share, got 80"),
        (["training.seed=-1"], r"training\.seed must be at least 0"),
        (["training.lr=nan"], r"training\.lr must be at least 0, got nan"),
        (["pins=[prompt]", "pins.prompt.budget=-3"], r"pins\.prompt\.budget must be at least 0, got -3"),
        (["model.lora_alpha=0"], r"model\.lora_alpha must be at least 1, got 0"),
        (["model.lora_dropout=1"], r"model\.lora_dropout must be at most 0\.95, got 1"),
        (["training.clip=nan"], r"training\.clip must be at least 0, got nan"),
        (["training.max_minutes=-1"], r"training\.max_minutes must be at least 0, got -1"),
        (["run_id=../../esc"], r"run_id='../../esc' would not name a folder under result"),
    ],
)
def test_settings_that_mean_something_else(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(overrides)


@pytest.mark.parametrize(
    "name", ["~/x.jsonl", "gr\u00f6\u00dfe.jsonl", "my (1).jsonl", "it's.jsonl", "a#b.jsonl", "[x].jsonl", "a=b.jsonl"]
)
def test_a_file_may_have_any_name(name: str) -> None:
    assert load(["data=gsm8k", f"data.path={name}"]).data["path"] == name
    assert load([f"model={name}"]).model.name == name


def test_the_name_of_a_run_is_a_text() -> None:
    assert [load([f"run_id={name}"]).run_id for name in ("1_000", "1e3", "true", "a/b")] == ["1_000", "1e3", "true", "a/b"]


def test_two_rows_are_not_one_folder() -> None:
    config = load(["scheme=full"])
    with pytest.raises(UserError, match="names that make one folder: a x, a-x"):
        rows.rows_of(config, [("a x", config), ("a-x", config)], ends=False)


def test_a_home_that_nobody_has(capsys: pytest.CaptureFixture[str]) -> None:
    assert "there is no such user" in said(["train", "data=gsm8k", "data.path=~nouser/a.jsonl", "--dry-run"], capsys)
    assert "File name too long" in said(["adapters", "x" * 300], capsys)


def test_nothing_else_answers_for_what_was_not_trained(
    made: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    toy, task, memory = made
    monkeypatch.chdir(tmp_path)
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(f"model: {{name: {toy}, adapter: {task}}}\nscheme: full\ndata: tally\nrun_id: mine\n")
    for arguments in (["generate", "hello", "--recipe"], ["evaluate", "--recipe"]):
        error = said([*arguments, str(recipe)], capsys)
        assert f"recipe '{recipe}' has left no adapter at 'result/tally/mine/adapter'; train it first" in error
    assert "there is no adapter at 'result/tally/typo/adapter'" in said(["generate", "hello", "run_id=typo"], capsys)
    assert "two adapters are named" in said(["evaluate", "--adapter", str(memory), f"model.adapter={task}"], capsys)
    overrides = [f"model.name={toy}", "scheme=full", f"model.adapter={memory}", "training.max_steps=1", "training.wandb=false"]
    assert "scheme=full trains a task adapter" in said(["train", *overrides], capsys)


def test_a_task_run_is_evaluated_by_its_name(made: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`scheme=full` is its own scheme, and not the bare model; beside a compression run it is the upper bound."""
    _, task, memory = made
    monkeypatch.chdir(tmp_path)
    for name, folder in (("task", task), ("memory", memory)):
        (tmp_path / "result" / "tally" / name).mkdir(parents=True)
        (tmp_path / "result" / "tally" / name / "adapter").symlink_to(folder)
    assert rows.trained(["run_id=task", "scheme=full"]) == Path("result/tally/task/adapter")
    assert rows.trained(["run_id=memory"]) == Path("result/tally/memory/adapter")
    assert rows.trained(["run_id=memory", "scheme=full"]) is None


def test_a_misspelt_setting_is_no_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert "'sheme=merge' is no setting" in said(["show", "sheme=merge", "ab|c|d"], capsys)
    cli.assemble()(args=["show", "scheme=merge", "ab|c|d"], standalone_mode=False)
    assert "merge" in capsys.readouterr().out


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    error = said(["show", "scheme=concat", "ab|c|d", "--save", str(tmp_path / "file" / "mask.png")], capsys)
    assert "free some space, or name another place" in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stop": ("",)}, r"stop must be texts with something in them"),
        ({"top_k": 5}, r"no option top_k; have: max_new_tokens, .*do_sample"),
        ({"max_new_tokens": None}, r"max_new_tokens must be a whole number"),
        ({"max_new_tokens": 2.5}, r"max_new_tokens must be a whole number"),
    ],
)
def test_options_of_decoding(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings.of(**options)
    assert Settings.of(stop="q8").stop == ("q8",)
    assert Settings.of(do_sample=True, top_p=0.9).temperature == 1.0 and Settings.of(do_sample=False, temperature=1.0).temperature == 0


def test_one_file_of_conversations_is_parted(tmp_path: Path) -> None:
    path = tmp_path / "talk.jsonl"
    path.write_text("".join(json.dumps({"dialog": [f"Turn {i} of {n}." for i in range(6)]}) + "\n" for n in range(200)))
    data = Dialogue(str(path), turns=5)
    found = {split: {e.target.split()[-1] for e in data.examples(split)} for split in ("train", "validation", "test")}
    assert all(found.values()) and sum(map(len, found.values())) == len(set.union(*found.values())) == 200
    assert len(found["train"]) > 150


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("72", "is a number alone"),
        ("72 clips.", "is a number alone"),
        ("After giving 3 away, Sam has 48 - 3 = 45 apples.", "end it with '#### 72'"),
    ],
)
def test_a_solution_without_its_mark_is_not_called_a_number(answer: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "my.jsonl"
    path.write_text(json.dumps({"question": "How many?", "answer": answer}) + "\n")
    with pytest.raises(ValueError, match=message):
        Gsm8k(str(path)).examples("test")


@pytest.mark.parametrize("damage", ["[]", "3", '{"pins": []}', '{"scheme": "concat"}', '{"files": ["x"]}', '{"base": []}'])
def test_a_card_of_another_shape(damage: str, made: tuple[Path, Path, Path], tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(made[2], folder)
    found, tree = json.loads(damage), json.loads((folder / "ccm.json").read_text())
    (folder / "ccm.json").write_text(json.dumps({**tree, **found} if isinstance(found, dict) else found))
    with pytest.raises(UserError, match=r"ccm\.json is damaged"):
        read_card(folder)


@pytest.mark.parametrize("damage", ["[]", "3", "{"])
def test_notes_of_another_shape(damage: str, tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text(damage)
    with pytest.raises(UserError, match=r"settings\.json' is damaged; .*--fresh"):
        Store(tmp_path, {"scheme": {}})
    Store(tmp_path, {"scheme": {}}, fresh=True)
    (tmp_path / "predictions.jsonl").write_text("")
    for text in (damage, '{"n": 0, "name": "x", "settings": {}, "run": []}'):
        (tmp_path / "metrics.json").write_text(text)
        with pytest.raises(UserError, match=r"metrics\.json is damaged"):
            read(tmp_path)


def test_no_row_is_run_before_all_can_be(made: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`full` comes first and may take an hour."""
    common = ["evaluate", "--adapter", str(made[2]), f"model.name={made[0]}", "evaluation.max_samples=2", "--out", str(tmp_path / "out")]
    assert "has 2 comp token(s), the scheme 3" in said([*common, "scheme.n_comp=3"], capsys)
    assert "nothing learnt at" in said([*common, "boundary=classifier"], capsys)
    assert "nothing learnt at" in said([*common, "--sweep", "pins=[prompt],[learned]"], capsys)
    assert not (tmp_path / "out").exists()


def test_rows_with_a_wrong_answer_are_counted(made: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, toy = tmp_path / "my.jsonl", made[0]
    rows = ({"question": f"{i}?", "answer": f"{i}", "original_reasoning": f"So it is {i}.\nYes, {i + (i % 4 == 0)}."} for i in range(60))
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    wrong = {split: Gsm8k(str(path)).dropped(split) for split in ("train", "test")}
    assert all(wrong.values())
    common = [f"data.path={path}", "data=gsm8k", f"model.name={toy}", "boundary=newline"]
    cli.assemble()(args=["annotate", *common, "--out", str(tmp_path / "marked.jsonl")], standalone_mode=False)
    assert f"{wrong['train']} rows of the data are left out" in capsys.readouterr().out
    short = ["generation.max_new_tokens=2", "evaluation.likelihood=false", "model.dtype=float32"]
    evaluated = ["evaluate", *common, "scheme=full", *short, "--alone", "--out", str(tmp_path / "out")]
    cli.assemble()(args=evaluated, standalone_mode=False)
    assert f"{wrong['test']} rows of the data are not among the items" in capsys.readouterr().out


def test_help_needs_no_torch() -> None:
    """It would take seconds."""
    code = "import sys, context_memory.cli as cli\ncli.assemble()\nassert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_two_processes_at_one_work_do_not_mix_their_lines(tmp_path: Path) -> None:
    mine, theirs = Partial(tmp_path / "own.jsonl", {"seed": 1}), Partial(tmp_path / "own.jsonl", {"seed": 1})
    mine.add({"n": 0})
    mine.add({"n": 1})
    with pytest.raises(UserError, match=r"another process writes '.*own\.jsonl\.partial\.jsonl'"):
        theirs.add({"n": 0})
    assert Partial(tmp_path / "own.jsonl", {"seed": 1}).lines == [{"n": 0}, {"n": 1}]


def test_a_recipe_that_says_one_thing_twice(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    for text in ("training: {lr: 1.0e-3}\ntraining: {max_steps: 2}\n", "training:\n  lr: 1.0e-3\n  lr: 1.0e-4\n"):
        recipe.write_text(text)
        with pytest.raises(UserError, match=r"says (training|lr) twice; put their settings together"):
            load([], recipe)
    recipe.write_text("training: {lr: 1.0e-3, max_steps: 2}\n")
    assert load([], recipe).training.lr == 1e-3
