"""The README's own commands and example run: as they stand there, on a toy model and with two steps."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

import toys
from context_memory import CompressedLM, cli, seed

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()
SMOKE = {
    "train": "training.max_steps=2 training.batch_size=2 training.eval_samples=0 training.wandb=false model.dtype=float32 model.lora_r=2",
    "evaluate": "evaluation.max_samples=4 generation.max_new_tokens=24 model.dtype=float32 boundary=every boundary.n=6",
    "pins": "--problems=12 --epochs=1 model.dtype=float32 boundary=newline",
    "boundary": "--problems=12 --epochs=1 model.dtype=float32 boundary=newline",
    "traces": "--max-problems=8 generation.max_new_tokens=8 model.dtype=float32",
    "generate": "generation.max_new_tokens=8 model.dtype=float32",
}
"""What each command gets behind it to be over in seconds."""


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", README, re.S)


def commands() -> list[list[str]]:
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith(("ccm ", "python run.py "))]


def test_the_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    toy = toys.folder(tmp_path / "toy")
    rows = ({"question": f"{i} plus {i}?", "answer": f"{i} + {i} = {2 * i}\nSo it is {2 * i}.\n#### {2 * i}"} for i in range(80))
    Path("my.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    said = commands()
    assert {c[1] for c in said if c[0] == "ccm"} >= {"train", "evaluate", "compare", "generate", "models"}
    for command in said:
        if command[0] == "python":
            given = [str(toy) if a == "llama-3.1-8b-instruct" else a for a in command[2:]]
            given = [a for a in given if not a.startswith("training.max_steps")]
            arguments = seed.translate([*given, "data.path=my.jsonl", *SMOKE["train"].split()])
        else:
            model = [f"model.name={toy}"] if command[1] in ("train", "annotate", "boundary", "pins", "traces") else []
            arguments = [*command[1:], *SMOKE.get(command[1], "").split(), *model]
        with pytest.raises(SystemExit) as end:
            cli.main(arguments)
        complaint = capsys.readouterr().err
        told = command[1] == "traces" and "none of 8 answers can be kept" in complaint  # random numbers solve nothing
        assert told or not end.value.code, (command, complaint)
    assert Path("result/gsm8k/memory/adapter/comp.safetensors").is_file()
    assert Path("result/gsm8k/my_run_v1/adapter/comp.safetensors").is_file()


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    toy = toys.folder(tmp_path / "toy")
    _, adapter = toys.adapters(tmp_path, toy)
    real = CompressedLM.load
    monkeypatch.setattr(CompressedLM, "load", classmethod(lambda cls, name, adapter: real(str(toy), folder, dtype="float32")))
    folder = adapter
    (example,) = blocks("python")
    exec(compile(example, "README.md", "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) >= 2 and (tmp_path / "coins.ccm").is_file()
