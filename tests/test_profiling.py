"""A few steps under the profiler leave a trace and a table; nothing else is different, and without the switch there is neither."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import toys
from context_memory import compose, records, rows
from context_memory.errors import UserError
from context_memory.profiling import DECODING, TABLE, TRACE, TRAINING, profiled
from context_memory.train import significant, train


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toys.folder(tmp_path_factory.mktemp("toy") / "toy")


def steps(folder: Path) -> list[int]:
    """Which steps a trace holds, after a look at trace and table."""
    events = json.loads((folder / TRACE).read_text())["traceEvents"]
    assert {"aten::linear", "aten::addmm", "aten::mm"} & {e.get("name") for e in events}
    assert "aten::mm" in (folder / TABLE).read_text() and not list(folder.glob("*.partial"))
    return sorted(1 + int(e["name"].partition("#")[2]) for e in events if e.get("name", "").startswith("ProfilerStep#"))


def evaluated(toy: Path, at: Path, *more: str) -> tuple[Path, records.Record]:
    config = compose.load([f"model={toy}", "model.dtype=float32", "scheme=full", "data.max_steps=3",
                           "evaluation.max_samples=3", "evaluation.batch_size=2", *more])  # fmt: skip
    (record,) = rows.run(rows.rows_of(config, ends=False), at)
    return at / "full", record


def test_decode_steps(toy: Path, tmp_path: Path) -> None:
    long = "generation.max_new_tokens=20"
    folder, record = evaluated(toy, tmp_path / "on", long, "evaluation.profile=true")
    assert steps(folder) == list(DECODING)
    off, plain = evaluated(toy, tmp_path / "off", long)
    assert not (off / TRACE).exists() and not (off / TABLE).exists()
    assert [(p.answer, p.nll) for p in plain.lines] == [(p.answer, p.nll) for p in record.lines]
    assert (off / records.SETTINGS).read_text() == (folder / records.SETTINGS).read_text()
    with pytest.raises(UserError, match="profile looks at answers and generate is off"):
        evaluated(toy, tmp_path / "none", "evaluation.profile=true", "evaluation.generate=false")


def test_training_steps(toy: Path, tmp_path: Path) -> None:
    common = [f"model={toy}", "model.dtype=float32", "training.wandb=false", "training.max_steps=6", "training.batch_size=2",
              "data.max_train_samples=16", "training.eval_samples=4", "run_id=x"]  # fmt: skip
    on, off = (compose.load([*common, f"output={tmp_path / o}", f"training.profile={o}"]) for o in ("true", "false"))
    assert significant(on) == significant(off)
    a, b = train(on), train(off)
    assert steps(a.folder) == list(TRAINING) and a.final_loss == b.final_loss
    assert not (b.folder / TRACE).exists() and not (b.folder / TABLE).exists()


def test_a_run_that_ends_before_it_is_recorded_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for calls in (0, 1):
        with profiled(True, tmp_path, range(3, 5)) as step:
            for _ in range(calls):
                step()
        assert "before step 3" in capsys.readouterr().err and not any(tmp_path.iterdir())


def test_a_run_that_ends_while_it_is_recorded_leaves_what_there_is(tmp_path: Path) -> None:
    with profiled(True, tmp_path, range(2, 5)) as step:
        step()
        step()
    assert (tmp_path / TRACE).is_file() and json.loads((tmp_path / TRACE).read_text())["traceEvents"]
