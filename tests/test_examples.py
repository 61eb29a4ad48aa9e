"""The examples run: on a tiny model in float64, where what is claimed is exact, and on the embedded model with a shipped adapter."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import ModuleType

import pytest

import toys
from context_memory.memory import Memory

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def three_ways(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "examples")
    return importlib.import_module("three_ways")


@pytest.mark.parametrize("chat", ["true", "false"])
@pytest.mark.parametrize("scheme", ["concat", "merge"])
def test_three_ways(
    three_ways: ModuleType, scheme: str, chat: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = toys.folder(tmp_path / "toy")
    _, adapter = toys.adapters(tmp_path, model, scheme, **{"model.chat": chat})
    given = ["--model", str(model), "--adapter", str(adapter), "--dtype", "float64"]
    assert three_ways.main(given) == 0
    out = capsys.readouterr().out
    assert float(re.search(r"logits differ by (\S+)", out)[1]) < 1e-12  # type: ignore[index]
    same, written = re.search(r"(\d+) of (\d+) tokens", out).groups()  # type: ignore[union-attr]
    assert same == written != "0"
    full, memory, nothing = (float(re.search(rf"{n} +([\d.]+)\n", out)[1]) for n in ("full", "memory", "nothing"))  # type: ignore[index]
    assert len({full, memory, nothing}) == 3
    monkeypatch.setattr(Memory, "fold", lambda *_, **__: None)  # control: a memory that forgets nothing is another computation
    assert three_ways.main(given) == 1
    assert "NOT the same" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.real
def test_three_ways_on_real_weights(three_ways: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert three_ways.main(["--adapter", str(ROOT / "adapters" / "smollm2-135m-instruct-tally-concat")]) == 0
    out = capsys.readouterr().out
    assert "4 turns" in out and "parallel == recursive == generated" in out


def test_three_ways_says_what_is_wrong(three_ways: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert three_ways.main(["--model", str(toys.folder(tmp_path / "toy")), "--adapter", str(tmp_path)]) == 2
    assert "has no ccm.json: it is not an adapter" in capsys.readouterr().err
