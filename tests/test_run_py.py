"""The seed's command line means what it meant: a table of commands and the settings they become."""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path

import pytest

import toys
from context_memory import adapter, plugins, records
from context_memory.cli import main
from context_memory.compose import load
from context_memory.config import Config
from context_memory.errors import UserError
from context_memory.seed import ONLINE, VALUES, translate

ROOT = Path(__file__).resolve().parents[1]
VERBATIM = "--model llama-3.1-8b-instruct --dataset gsm8k --train --run_id my_run_v1 --no_wandb training.max_steps=500 data.train_ratio=0.8"


def meant(line: str) -> Config:
    """The settings of a command line that trains."""
    command, *overrides = translate(line.split())
    assert command == "train"
    return load(overrides)


def test_the_command_of_the_readme() -> None:
    c = meant(VERBATIM)
    assert (c.model.name, c.data["name"], c.run_id) == ("llama-3.1-8b-instruct", "gsm8k", "my_run_v1")
    assert (c.training.max_steps, c.data["train_ratio"], c.training.wandb) == (500, 0.8, False)
    assert c.scheme == {"name": "concat", "n_comp": 2, "recurrent": True, "window": 0, "cache": 0, "lag": 0} and c.gate() == "comp"
    assert c.training.gradient_checkpointing and c.training.lr == 3e-4 and c.model.lora_r == 8 and c.training.patience == 3
    assert meant("--train").model.name == "llama-3.1-8b-instruct" and meant("--train").data["name"] == "gsm8k"


def test_the_seed_readme_has_this_command() -> None:
    readme = ROOT / "README.md"
    if readme.is_file() and "run.py" in (text := readme.read_text()):
        for line in re.findall(r"^python run\.py (.*?)$", text, re.M):
            assert translate(line.rstrip("\\").split())


@pytest.mark.parametrize("kind", sorted(ONLINE))
def test_attn_type_is_a_scheme(kind: str) -> None:
    c = meant(f"--train --dataset tally --attn_type {kind} --n_tok 4")
    name, _, recur = kind.partition("_")
    settings = {"n_comp": 4} | ({"recurrent": bool(recur)} if name != "gist" else {})
    assert c.make("scheme") == plugins.make("schemes", name, **settings)


@pytest.mark.parametrize(
    ("line", "scheme"),
    [
        ("--comp_type no", ("full", 0)),
        ("--comp_type no --n_tok 2", ("full", 0)),
        ("--comp_type fixed --n_tok 1", ("gist", 1)),
        ("--comp_type neg_control", ("nothing", 0)),
        ("--comp_type online --attn_type merge_recur", ("merge", 2)),
    ],
)
def test_comp_type_is_a_scheme(line: str, scheme: tuple[str, int]) -> None:
    c = meant(f"--train --dataset tally {line}")
    assert (c.scheme["name"], c.scheme["n_comp"]) == scheme


def test_the_other_flags() -> None:
    c = meant("--train --dataset tally --load_path some/where --lora_r 16 --max_steps 9 --lr 0.01 --seed 5 -b 3 --sink model.dtype=float32")
    assert (c.model.adapter, c.model.lora_r, c.model.dtype) == ("some/where", 16, "float32")
    t = c.training
    assert (t.max_steps, t.lr, t.seed, t.batch_size) == (9, 0.01, 5, 3) and sorted(c.pins) == ["prompt", "sink"]
    assert len({setting for setting, _ in VALUES.values()}) == len(VALUES)


def test_overrides_may_stand_anywhere_and_come_last() -> None:
    assert meant("training.lr=1 --train --dataset tally --lr 2 training.max_steps=3").training.lr == 1


def test_without_train_it_evaluates() -> None:
    assert translate(["--dataset", "tally", "--load_path", "x"]) == [
        "evaluate", "scheme=concat", "scheme.recurrent=true", "data=tally", "model.name=llama-3.1-8b-instruct", "model.adapter=x",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["metaicl", "soda", "dialog", "lamp", "unified", "pretrain", "gsm8k", "dialogue", "icl"])
def test_the_original_names_of_datasets(name: str) -> None:
    c = meant(f"--train --dataset {name}")
    want = {"metaicl": "icl", "soda": "dialogue", "dialog": "dialogue", "lamp": "personal", "unified": "mixture", "pretrain": "mixture"}
    assert c.data["name"] == want.get(name, name)
    if name in want:
        assert c.boundary["name"] == "turn" and list(c.pins) == ["sink"] and not c.model.chat
    assert c.data.get("parts") == {"unified": ["icl", "dialogue"], "pretrain": ["icl", "dialogue", "books"]}.get(name)


def test_k_and_an_adapter_of_another_dataset() -> None:
    assert meant("--train --dataset metaicl --k 4").data["k"] == meant("--train --dataset lamp --k 4").data["k"] == 4
    for name in ("unified", "pretrain"):
        assert meant(f"--train --dataset {name} --k 4").data["settings"] == {"icl": {"k": 4}}
    with pytest.raises(UserError, match=r"--k 4 is a number of demonstrations.+dataset 'dialog' has neither"):
        translate(["--train", "--dataset", "dialog", "--k", "4"])
    homes = {str(meant(f"--train --dataset {name}").home()) for name in ("unified", "pretrain", "dialog", "soda", "gsm8k")}
    assert len(homes) == 5
    said = translate(["--dataset", "lamp", "--train_dataset", "unified", "--run_id", "mine", "output=there"])
    assert said[0] == "evaluate" and "data=personal" in said and "model.adapter=there/unified/mine/adapter" in said
    assert "model.adapter=x" in translate(["--dataset", "lamp", "--train_dataset", "unified", "--run_id", "mine", "--load_path", "x"])
    for line in ("--train --train_dataset soda --run_id x", "--train_dataset soda"):
        with pytest.raises(UserError, match="leave --train out and name the run"):
            translate(line.split())


def written(root: Path) -> Path:
    """A few rows of what `unified` is trained on, and of what `lamp` asks."""
    tasks = [{"input": f"Film {i} was", "output": ("bad", "good")[i % 2], "options": ["bad", "good"]} for i in range(12)]
    film = [{"text": f"Film {i}", "rating": str(1 + i % 5)} for i in range(8)]
    rows = {
        "icl/{}/films.jsonl": [row | {"split": split} for row in tasks for split in ("train", "test")],
        "dialogue/self_dialogue/{}.jsonl": [{"dialog": [f"I say {i}, {j}." for j in range(15)]} for i in range(9)],
        "personal/{}.jsonl": [{"profile": film, "input": f"Film {i}", "output": "3", "options": ["1", "3"]} for i in range(9)],
    }
    for name, lines in rows.items():
        for split in ("train", "validation", "test"):
            (at := root / name.format(split)).parent.mkdir(parents=True, exist_ok=True)
            at.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


def test_what_one_dataset_has_trained_is_evaluated_on_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`run.py` itself, from the data to the table. The control: a run that was never trained is not found."""
    monkeypatch.setenv("CCM_DATA", str(written(tmp_path / "data")))
    monkeypatch.chdir(tmp_path)
    common = f"--model {toys.folder(tmp_path / 'toy')} --k 2 model.dtype=float32 output=there"

    def run(line: str) -> int:
        monkeypatch.setattr(sys, "argv", ["run.py", *line.split(), *common.split()])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / "run.py"), run_name="__main__")
        return int(end.value.code or 0)

    small = "--lora_r 2 --max_steps 3 training.tokens_per_batch=600 training.eval_samples=2 training.eval_steps=3"
    ask = "--dataset lamp --train_dataset unified evaluation.max_samples=3 generation.max_new_tokens=4"
    assert run(f"--dataset unified --train --run_id mine --no_wandb {small}") == 0
    card = adapter.read_card(tmp_path / "there" / "unified" / "mine" / "adapter")
    assert card.config["data"]["parts"] == ["icl", "dialogue"] and card.config["data"]["settings"] == {"icl": {"k": 2}}
    assert run(f"{ask} --run_id nobody") == 2 and run(f"{ask} --run_id mine") == 0
    rows = {r.name: r for r in records.gather([tmp_path / "there" / "lamp" / "mine" / "evaluation"])}
    assert list(rows) == ["full", "concat", "nothing"]
    assert rows["concat"].settings["adapter"] == card.files and rows["full"].settings["adapter"] is None
    asked = plugins.make("data", "personal", k=2).examples("test")[:3]  # type: ignore[attr-defined]
    assert [line.asked for line in rows["concat"].lines] == [e.digest for e in asked] and {len(e.context) for e in asked} == {2}


def test_what_compresses_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="hides nothing"):
        translate(["--train", "--comp_type", "pos_control"])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--train --attn_type sideways", "invalid choice: 'sideways'"),
        ("--train --colour red", "unrecognized arguments: --colour"),
        ("--train --dataset mnist", "no dataset called 'mnist'"),
        ("--train --dataset tally --model nobody-knows-this", "no model called 'nobody-knows-this'"),
        ("--train --comp_type pos_control", "hides nothing"),
    ],
)
def test_bad_input_ends_with_2_and_no_traceback(line: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(lambda: translate([*line.split(), f"output={tmp_path}"]))
    error = capsys.readouterr().err
    assert stop.value.code == 2 and said in error and "Traceback" not in error
