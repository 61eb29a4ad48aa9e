"""`ccm adapters`: what cards say, in the words of the command line; what cannot be loaded is said, not hidden."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import toys
from context_memory import cli, plugins
from context_memory.adapter import CARD, LORA
from context_memory.plugins import title
from context_memory.shelf import entries

SHIPPED = Path(__file__).resolve().parents[1] / "adapters"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    place = tmp_path_factory.mktemp("shelf")
    return toys.adapters(place, toys.folder(place / "toy"), boundary="every", pins="[prompt,results]", **{"boundary.n": 9})


@pytest.fixture
def two(made: tuple[Path, Path], tmp_path: Path) -> Path:
    """The task adapter and the one that stands on it, side by side."""
    for folder, name in zip(made, ("task", "memory")):
        shutil.copytree(folder, tmp_path / "shelf" / name)
    return tmp_path / "shelf"


def test_cards_are_read_aloud(two: Path, made: tuple[Path, Path]) -> None:
    memory, task = entries([two])
    assert (memory.scheme, memory.boundary, memory.pins, memory.data) == ("concat n_comp=2", "every n=9", "prompt, results", "tally")
    assert (memory.task, memory.trouble) == (made[0].name, "") and memory.licence == "Apache-2.0"
    assert (task.scheme, task.task, task.trouble) == ("task adapter", "", "")
    on_disk = sum(f.stat().st_size for f in (two / "memory").iterdir()) / 1e6
    assert memory.megabytes == on_disk > 0


def test_settings_are_those_that_differ() -> None:
    assert title("schemes", {"name": "concat", "n_comp": 2, "recurrent": True, "window": 8}) == "concat n_comp=2 window=8"
    assert title("pins", {"name": "numbers", "budget": 3, "once": True}) == "numbers budget=3 once=true"
    assert title("pins", {"name": "somebody_elses", "depth": 3}) == "somebody_elses depth=3"
    long = title("pins", {"name": "rare", "skip": "so thus then " * 20})
    assert long.startswith("rare skip=so thus") and len(long) == len("rare ") + plugins.WIDEST


def test_a_missing_task_adapter_and_a_damaged_file_are_said(two: Path) -> None:
    card = json.loads((two / "memory" / CARD).read_text())
    card["task"]["path"] = "../gone"
    (two / "memory" / CARD).write_text(json.dumps(card))
    with (two / "task" / LORA).open("ab") as file:
        file.write(b"x")
    memory, task = entries([two])
    assert "which is not there" in memory.trouble and "truncated or changed" in task.trouble


def test_the_command(two: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def ccm(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            cli.main(["adapters", *arguments])
        return int(end.value.code or 0), *capsys.readouterr()

    monkeypatch.chdir(two.parent)
    code, out, _ = ccm("shelf")
    assert code == 0 and "shelf/memory" in out and "on top of" in out and "concat n_comp=2; every n=9; prompt, results" in out
    code, out, _ = ccm("shelf", "--for", "toy", "--json")
    assert code == 0 and [e["folder"] for e in json.loads(out)] == ["shelf/memory", "shelf/task"]
    for arguments, message in (
        (("shelf", "--for", "other"), "no adapter of model 'other', but of toy in 'shelf'"),
        ((), "no folder 'adapters'"),
        (("shelf/task/nothing",), "no folder"),
    ):
        code, _, err = ccm(*arguments)
        assert code == 2 and message in err and "Traceback" not in err
    Path("empty").mkdir()
    assert "no adapter in 'empty'" in ccm("empty")[2]


def test_what_is_shipped_is_whole() -> None:
    assert not [(e.folder, e.trouble) for e in entries([SHIPPED]) if e.trouble]


def test_only_hidden_folders_inside_are_left_out(two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A place may itself be hidden, or be said as `..`."""
    shutil.copytree(two, tmp_path / ".cache" / "mine")
    shutil.copytree(two, tmp_path / ".cache" / "mine" / ".trash")
    assert len(entries([tmp_path / ".cache" / "mine"])) == 2
    monkeypatch.chdir(two)
    assert len(entries([Path("../shelf")])) == 2
