"""Memory files: save then open == never saved; a file that is cut, edited or somebody else's is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

import toys
from context_memory import memory_file
from context_memory.errors import UserError
from context_memory.loading import load
from context_memory.model import CompressedLM
from context_memory.testing import tiny_lm, tiny_lms

ENTRIES = {
    "model": ("'other' (2 layers, hidden size 32)", "'other' (2 layers, hidden size 32)", "'model' (2 layers, hidden size 32)"),
    "weights": ("weights:0123456789abcdef", "'model' (weights:0123456789ab)", "'model' (weights:"),
    "adapter": ("0123456789abcdef", "'mine' (sha256 0123456789ab)", "'mine' (sha256 "),
    "tokenizer": ("0123456789abcdef", "'model' (sha256 0123456789ab)", "'model' (sha256 "),
    memory_file.RULES: ("0123456789abcdef", "'model' (sha256 0123456789ab)", "'model' (sha256 "),
    "scheme": ("Concat(n_comp=9) positions=skip", "'Concat(n_comp=9) positions=skip'", "'Concat(n_comp=2, "),
    "dtype": ("bfloat16", "'bfloat16'", "'float32'"),
}
"""Entry of the header -> another value of it, and how a refusal says that one and our own."""
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
    refusal = r"was written with adapter 'concat' \(sha256 (\w{12})\), here is 'concat' \(sha256 (?!\1)\w{12}\)"
    with pytest.raises(UserError, match=refusal):
        other.open(tmp_path / "a.ccm")
    with pytest.raises(UserError, match=r"was written with adapter 'concat' \(sha256 \w{12}\), here is none"):
        load(str(model), scheme=one.scheme, dtype="float32").open(tmp_path / "a.ccm")


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> CompressedLM:
    """A toy with an adapter that is called `mine`, as is that of a run."""
    home = tmp_path_factory.mktemp("toy")
    model = toys.folder(home / "model")
    _, adapter = toys.adapters(home / "made", model)
    return load(str(model), adapter.rename(adapter.parent / "mine"), dtype="float32")


def edit(path: Path, belongs_to: dict[str, str | None], **header: str | None) -> None:
    """Other entries in the header of a memory file (None: an entry less), which is whole again behind it."""
    with safe_open(path, "pt") as source:
        was, tensors = source.metadata(), {name: source.get_tensor(name) for name in source.keys()}

    def changed(old: dict[str, str], new: dict[str, str | None]) -> dict[str, str]:
        return {k: v for k, v in (old | new).items() if v is not None}

    now = changed(was, header | {"belongs_to": json.dumps(changed(json.loads(was["belongs_to"]), belongs_to))})
    save_file(tensors, path, metadata=now | {"content": memory_file.digest(tensors, now)})


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_entry_of_the_header_is_compared(entry: str, lm: CompressedLM, tmp_path: Path) -> None:
    path, (other, theirs, ours) = tmp_path / "a.ccm", ENTRIES[entry]
    assert set(memory_file.identity(lm)) == set(ENTRIES)
    lm.memory().save(path)
    edit(path, {})
    lm.open(path)  # control
    edit(path, {entry: other})
    with pytest.raises(UserError, match=re.escape(f"memory '{path}' was written with {entry} {theirs}, here is {ours}")):
        lm.open(path)


def test_a_file_from_before_names_were_noted_still_opens(lm: CompressedLM, tmp_path: Path) -> None:
    """And one without the tokenizer's rules; of what is compared always, none may be missing. A name alone is not compared."""
    path = tmp_path / "a.ccm"
    lm.memory().save(path)
    edit(path, {}, called=json.dumps({"adapter": "renamed"}))
    lm.open(path)
    edit(path, {memory_file.RULES: None}, called=None)
    lm.open(path)
    edit(path, {"adapter": "0123456789abcdef"})
    with pytest.raises(UserError, match=r"was written with adapter sha256 0123456789ab, here is 'mine' \(sha256 "):
        lm.open(path)
    edit(path, {"adapter": None})
    with pytest.raises(UserError, match="was written with adapter none, here is 'mine'"):
        lm.open(path)


def test_a_tokenizer_of_the_same_words_and_other_rules_is_refused(lm: CompressedLM, tmp_path: Path) -> None:
    words = {"a": 0, "b": 1, "ab": 2, "ba": 3}
    one, other = (PreTrainedTokenizerFast(tokenizer_object=Tokenizer(BPE(words, [merge]))) for merge in (("a", "b"), ("b", "a")))
    assert one.get_vocab() == other.get_vocab() and memory_file._rules(one) == [["a b"], None] != memory_file._rules(other)
    one(["ab", "a"], padding=False, truncation=True, max_length=1)
    assert memory_file._rules(one) == [["a b"], None]  # what a call leaves behind in a tokenizer is no rule of it
    lm.memory().save(tmp_path / "a.ccm")
    before, lm.tokenizer.chat_template = lm.tokenizer.chat_template, "{{ messages }}"
    try:
        with pytest.raises(UserError, match="was written with tokenizer rules 'model'"):
            lm.open(tmp_path / "a.ccm")
    finally:
        lm.tokenizer.chat_template = before
