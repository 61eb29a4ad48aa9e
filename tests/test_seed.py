"""The seed family's flags mean what they meant there, and its command line works as it is written in its README."""

from __future__ import annotations

from pathlib import Path

import pytest

import toys
from context_memory import seed
from context_memory.compose import load

VERBATIM = (
    "--model llama-3.1-8b-instruct --dataset gsm8k --train --run_id my_run_v1 --no_wandb training.max_steps=500 data.train_ratio=0.8"
)


def test_the_command_of_its_readme() -> None:
    flags = seed.parser().parse_intermixed_args(VERBATIM.split())
    config = load(seed.translate(flags))
    assert flags.train and config.run_id == "my_run_v1" and config.model.name == "llama-3.1-8b-instruct"
    assert config.training.max_steps == 500 and config.data["train_ratio"] == 0.8 and not config.training.wandb
    assert config.scheme["name"] == "concat" and config.scheme["n_comp"] == 1 and config.training.lr == 3e-4


@pytest.mark.parametrize(
    ("flags", "scheme"),
    [
        ("--comp_type no", {"name": "full"}),
        ("--comp_type neg_control", {"name": "nothing"}),
        ("--comp_type fixed --n_tok 2", {"name": "gist", "n_comp": 2}),
        ("--attn_type gist", {"name": "gist", "n_comp": 1}),
        ("--attn_type concat", {"name": "concat", "recurrent": False}),
        ("--attn_type merge_recur --n_tok 8", {"name": "merge", "recurrent": True, "n_comp": 8}),
    ],
)
def test_schemes(flags: str, scheme: dict[str, object]) -> None:
    config = load(seed.translate(seed.parser().parse_intermixed_args(flags.split())))
    assert {k: config.scheme.get(k) for k in scheme} == scheme


def test_it_trains(tmp_path: Path) -> None:
    model = toys.folder(tmp_path / "toy")
    small = "training.batch_size=2 training.eval_samples=0 data.max_train_samples=4 model.dtype=float32"
    seed.main(f"--model {model} -d tally --train --run_id a --no_wandb --max_steps 2 -r 2 output={tmp_path} {small}".split())
    assert (tmp_path / "tally" / "a" / "adapter" / "comp.safetensors").is_file()


def test_a_slip_is_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        seed.main(["--train", "-d", "gsm9k"])
    assert end.value.code == 2 and "gsm9k" in capsys.readouterr().err
