"""Memory files: save then open == never saved; a file that is cut, edited or somebody else's is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import toys
from context_memory.errors import UserError
from context_memory.loading import load
from context_memory.testing import tiny_lm, tiny_lms

SEGMENTS = ([5, 9, 3], [7, 1], [2, 2, 8, 4])
PROMPT = [6, 6, 2]


@pytest.mark.parametrize(("family", "scheme"), [pytest.param(f, s, id=f"{f}-{s}") for f, s in tiny_lms(["llama", "mistral"])])
def test_saved_and_opened_is_never_saved(family: str, scheme, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    lm = tiny_lm(family, scheme)
    memory = lm.memory()
    for segment in SEGMENTS[: scheme.max_steps]:
        memory.write(segment)
    memory.save(tmp_path / "a.ccm")
    again = lm.open(tmp_path / "a.ccm")
    assert again.nbytes() == memory.nbytes() and again.step == memory.step and again.clock == memory.clock
    for m in (memory, again):
        if scheme.max_steps is None:
            m.write([3, 1])
    with torch.no_grad():
        assert torch.equal(memory.read(PROMPT), again.read(PROMPT))
        assert not torch.equal(lm.memory().read(PROMPT), again.fork().read(PROMPT))  # control: the memory matters
    assert [p.name for p in tmp_path.iterdir()] == ["a.ccm"]


def test_what_is_not_ours_is_refused(tmp_path: Path) -> None:
    scheme = tiny_lms(["llama"])[0][1]
    lm = tiny_lm("llama", scheme)
    memory = lm.memory()
    memory.write(SEGMENTS[0])
    path = tmp_path / "a.ccm"
    memory.save(path)
    with pytest.raises(UserError, match="there is no memory at"):
        lm.open(tmp_path / "b.ccm")
    with pytest.raises(UserError, match="was written with model"):
        tiny_lm("qwen3", scheme).open(path)
    with pytest.raises(UserError, match="was written with scheme"):
        tiny_lm("llama", tiny_lms(["llama"])[1][1]).open(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-8] + bytes(8))
    with pytest.raises(UserError, match="its content was changed"):
        lm.open(path)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="damaged or not a memory file"):
        lm.open(path)
    path.write_bytes(b"PK\x03\x04" + whole[4:])
    with pytest.raises(UserError, match="damaged or not a memory file"):
        lm.open(path)


def test_a_memory_of_another_adapter_is_refused(tmp_path: Path) -> None:
    """Of one model and task adapter, one scheme and shape: only the numbers of the adapter differ."""
    model = toys.folder(tmp_path / "model")
    one, other = (load(str(model), toys.adapters(tmp_path / f"{seed}", model, seed=seed)[1], dtype="float32") for seed in (1, 2))
    assert one.task is not None and other.task is not None and one.task[1] == other.task[1] and repr(one.scheme) == repr(other.scheme)
    memory = one.memory()
    memory.write(SEGMENTS[0])
    memory.save(tmp_path / "a.ccm")
    assert one.open(tmp_path / "a.ccm").tokens == memory.tokens  # control
    with pytest.raises(UserError, match="was written with adapter"):
        other.open(tmp_path / "a.ccm")
