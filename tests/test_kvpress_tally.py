"""The parts of `benchmarks/kvpress_tally.py` that need no kvpress: decoding beside a press, what is measured, the table."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

import toys
from context_memory.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def tally(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    module = importlib.import_module("kvpress_tally")
    monkeypatch.setattr(module, "LIMIT", 7)
    return module


@pytest.fixture
def model(tmp_path: Path) -> Any:
    return LlamaForCausalLM.from_pretrained(toys.folder(tmp_path / "toy"), dtype=torch.float64, attn_implementation="eager").eval()


def last(keep: int, free: bool) -> Any:
    """A press that leaves the last entries; one that does not free keeps a view of all of them."""

    @contextmanager
    def press(model: Any) -> Iterator[None]:
        def cut(module: Any, _: Any, kwargs: dict[str, Any], __: Any) -> None:
            layer = kwargs["past_key_values"].layers[module.layer_idx]
            layer.keys, layer.values = (x[:, :, -keep:].clone() if free else x[:, :, -keep:] for x in (layer.keys, layer.values))

        hooks = [layer.self_attn.register_forward_hook(cut, with_kwargs=True) for layer in model.model.layers]
        yield
        for hook in hooks:
            hook.remove()

    return press


def test_without_a_press_it_is_greedy_decoding_and_all_is_held(tally: ModuleType, model: Any) -> None:
    prompts = torch.randint(4, 90, (2, 9), generator=torch.Generator().manual_seed(0))
    answers = [tally.Answer("full", str(i), 9) for i in range(2)]
    tally.decode(model, prompts, None, answers, stops=[])
    wanted = model.generate(prompts, max_new_tokens=7, do_sample=False, eos_token_id=None, pad_token_id=0)[:, 9:]
    assert [a.ids for a in answers] == wanted.tolist()
    entry = 2 * 2 * 2 * 8 * 8  # layers, keys and values, heads, width, bytes of a float64
    assert [(a.peak, a.fed, a.total, a.nbytes) for a in answers] == [(15, 6, sum(range(10, 16)), 15 * entry)] * 2
    stopped = [tally.Answer("full", "0", 9)]
    tally.decode(model, prompts[:1], None, stopped, stops=[answers[0].ids[3]])
    assert (stopped[0].reason, stopped[0].ids) == ("eos", answers[0].ids[: answers[0].ids.index(answers[0].ids[3])])


def test_what_is_cut_must_be_free(tally: ModuleType, model: Any) -> None:
    prompts = torch.randint(4, 90, (1, 9), generator=torch.Generator().manual_seed(0))
    answers = [tally.Answer("cut", "0", 9), tally.Answer("full", "0", 9)]
    tally.decode(model, prompts, last(4, free=True), answers[:1], stops=[])
    tally.decode(model, prompts, None, answers[1:], stops=[])
    assert answers[0].peak == 10 and answers[0].total == 10 + 5 * 5
    assert answers[0].ids != answers[1].ids
    with pytest.raises(RuntimeError, match="bytes of storage"):
        tally.decode(model, prompts, last(4, free=False), [tally.Answer("cut", "0", 9)], stops=[])


def test_table(tally: ModuleType) -> None:
    examples = tally.problems(4)
    given = [{"id": e.id, "ids": [1] * n, "target": e.target} for e, n in zip(examples, (5, 7, 5, 6))]
    assert [[p["id"] for p in group] for group in tally.by_length(given)] == [[examples[i].id for i in g] for g in ([0, 2], [1], [3])]

    def said(row: str, i: int, right: bool) -> dict[str, Any]:
        line = tally.Answer(row, examples[i].id, 5, [i if right else 99], "eos", fed=2, peak=9, total=17, nbytes=3_000_000)
        return vars(line)

    answers = [said("full", i, True) for i in range(4)] + [said("knorm", i, i == 0) for i in range(4)]
    text = tally.markdown(given, answers, lambda ids, **_: examples[ids[0]].target if ids[0] < 4 else "#### -1")
    rows = {cells[0]: cells for line in text.splitlines()[2:] if (cells := [c.strip() for c in line.strip("| ").split("|")])}
    assert rows["full"][1:4] == ["4", "100.0 [51.0, 100.0]", ""]
    assert rows["knorm"][2].startswith("25.0") and rows["knorm"][3].startswith("-75.0") and rows["knorm"][4] == "0.250"
    assert rows["knorm"][5:9] == ["4.0", "9.0", "8.5", "3.00"]
    with pytest.raises(UserError, match="not those"):
        tally.markdown([given[0] | {"target": "#### 1"}], answers, str)
