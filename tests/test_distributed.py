"""Two processes train as one does with twice the batch: the same losses, step by step."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import toys

ROOT = Path(__file__).resolve().parents[1]


def losses(folder: Path) -> list[float]:
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [e["loss"] for e in entries if "loss" in e] + [e["eval_loss"] for e in entries if "eval_loss" in e]


@pytest.mark.slow
def test_two_processes_are_one_with_twice_the_batch(tmp_path: Path) -> None:
    toy = toys.folder(tmp_path / "toy-llama")
    overrides = [f"model.name={toy}", f"output={tmp_path}", "model.dtype=float32", "data.min_steps=3", "data.max_steps=3",
                 "data.distractors=0", "data.max_train_samples=16", "training.eval_samples=4", "training.batch_size=1",
                 "training.max_steps=3", "training.lr=1e-2", "training.log_steps=1", "training.wandb=false"]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    # Despite its name, what makes accelerate start more than one process; `--cpu` starts a single one, without a word.
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
              "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", str(port)]  # fmt: skip
    train = ["-m", "context_memory.cli", "train", *overrides]
    two = subprocess.run([*launch, *train, "run_id=two"], env=environment, capture_output=True, text=True, check=False)
    assert two.returncode == 0, two.stderr[-3000:]
    one = subprocess.run(
        [sys.executable, *train, "run_id=one", "training.accumulate=2"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert one.returncode == 0, one.stderr[-3000:]
    a, b = losses(tmp_path / "tally" / "two"), losses(tmp_path / "tally" / "one")
    assert len(a) == 4 and a == pytest.approx(b, rel=1e-4)
    assert (tmp_path / "tally" / "two" / "adapter" / "ccm.json").is_file()


CLOCK = """
from types import SimpleNamespace
from accelerate import PartialState
from context_memory.progress import Clock
state = PartialState(cpu=True)
clock, control = Clock(0 if state.process_index else None), SimpleNamespace(should_save=False, should_training_stop=False)
clock.on_step_end(None, SimpleNamespace(global_step=1, max_steps=2), control)
print("stops", control.should_training_stop, control.should_save, clock.stopped)
"""


@pytest.mark.slow
def test_all_processes_stop_when_one_has_no_time_left() -> None:
    """One that goes on alone would wait for ever."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    common = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    run: Any = {"stdout": subprocess.PIPE, "text": True}
    ranks = [{**common, "RANK": str(r), "LOCAL_RANK": str(r)} for r in range(2)]
    both = [subprocess.Popen([sys.executable, "-c", CLOCK], env=environment, **run) for environment in ranks]
    assert [p.communicate(timeout=120)[0].strip() for p in both] == ["stops True True True"] * 2
