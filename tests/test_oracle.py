"""The oracle: costs are the rise of the likelihood that one boundary brings, and the cheapest places are found."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

import toys
from context_memory.boundaries.every import Every
from context_memory.cli import main
from context_memory.encode import Encoder
from context_memory.errors import InputError
from context_memory.oracle import Oracle, cheapest, rises
from context_memory.plan import layout
from context_memory.reading import likelihoods
from context_memory.schemes.concat import Concat
from context_memory.schemes.full import Full
from context_memory.testing import tiny_lm
from context_memory.text import Example

torch.set_num_threads(1)
EXAMPLE = Example("1 + 2?", "1 + 2 = 3\n#### 3")


def encoder_for(size: int, n: int = 3) -> Encoder:
    """Ids within a tiny vocabulary."""
    words = toys.tokenizer()
    encoder = Encoder(words, Every(n=n), chat=False)
    plain = encoder._answer
    encoder._answer = lambda e: (tuple(i % size for i in plain(e)[0]), plain(e)[1], plain(e)[2])  # type: ignore[method-assign]
    encoder.ids = lambda text: [i % size for i in words(text, add_special_tokens=False)["input_ids"]]  # type: ignore[method-assign]
    return encoder


def test_a_cost_is_the_rise_that_one_boundary_brings() -> None:
    lm = tiny_lm("llama", Concat(n_comp=2))
    encoder = encoder_for(lm.base.config.vocab_size)
    found = rises(lm, encoder, EXAMPLE, [3, 9, 12], batch_size=2)
    ids = torch.tensor([[i for s in encoder.uncut(EXAMPLE) for i in s.ids]])
    given = len(encoder.uncut(EXAMPLE)[0].ids)
    logits = lm.base(ids).logits[0, given - 1 : -1]  # the stock model, uncompressed
    whole = float(torch.nn.functional.cross_entropy(logits, ids[0, given:], reduction="sum").detach())
    for place, rise in zip([3, 9, 12], found):
        cut = Example(EXAMPLE.prompt, EXAMPLE.target, cuts=encoder.offsets(EXAMPLE, [place]))
        ((nll, _),) = likelihoods(lm, [layout(encoder.segments(cut), lm.scheme)])
        assert rise == pytest.approx(nll - whole, abs=1e-9)
    assert len({round(r, 6) for r in found}) == 3


@pytest.mark.parametrize("seed", range(20))
def test_the_cheapest_are_found(seed: int) -> None:
    rng = random.Random(seed)
    places = sorted(rng.sample(range(1, 30), 7))
    costs, longest, wanted = [rng.random() for _ in places], rng.choice([8, 12, 30]), rng.choice([1, 2, 3])
    found = cheapest(places, costs, wanted, 30, longest)
    cost = dict(zip(places, costs))

    def allowed(chosen: tuple[int, ...]) -> bool:
        stops = [0, *places, 30]
        return all(b - a <= longest or stops.index(b) == stops.index(a) + 1 for a, b in itertools.pairwise([0, *chosen, 30]))

    choices = [c for k in range(wanted, 8) for c in itertools.combinations(places, k) if allowed(c)]
    fewest = min(map(len, choices))
    best = min((sum(cost[p] for p in c), c) for c in choices if len(c) == fewest)
    assert tuple(found) == best[1]


def test_segments_have_the_length_that_is_aimed_at() -> None:
    lm = tiny_lm("llama", Concat(n_comp=1))
    encoder = encoder_for(lm.base.config.vocab_size, n=2)
    n = len(EXAMPLE.target)
    assert [len(Oracle(length=length).cuts(lm, encoder, EXAMPLE)) for length in (n / 2, n / 4)] == [1, 3]
    assert Oracle(length=4).cuts(lm, encoder_for(lm.base.config.vocab_size, n=200), EXAMPLE) == ()
    with pytest.raises(InputError, match="length <= longest"):
        Oracle(length=30, longest=20)
    with pytest.raises(InputError, match="scheme full compresses nothing; give a compression adapter"):
        Oracle().cuts(tiny_lm("llama", Full()), encoder, EXAMPLE)


def test_the_command_goes_on_where_it_was_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = toys.folder(tmp_path / "model")
    _, adapter = toys.adapters(tmp_path, model)
    measured, stock = [], Oracle.cuts

    def cuts(self: Oracle, lm: Any, encoder: Any, example: Example) -> tuple[int, ...]:
        measured.append(example.prompt)
        if len(measured) == 3:
            raise KeyboardInterrupt
        return stock(self, lm, encoder, example)

    monkeypatch.setattr(Oracle, "cuts", cuts)
    out = tmp_path / "marked.jsonl"
    given = ["annotate", f"model={model}", "data=tally", "data.max_steps=3", "data.max_train_samples=4", "--adapter", str(adapter)]
    command = [*given, "--out", str(out), "boundary=every", "boundary.n=12", "--oracle"]
    for length, code in (("24", 130), ("30", 2), ("24", 0)):
        with pytest.raises(SystemExit) as end:
            main([*command, length])
        assert (end.value.code or 0) == code
        assert code != 2 or "was begun with length = 24.0, got 30.0" in capsys.readouterr().err
    assert len(measured) == 5 and measured[2] == measured[3]  # two were kept, the third was begun again, the fourth followed
    assert len(out.read_text().splitlines()) == 4 and not list(tmp_path.glob("*.partial*"))


def test_the_command_writes_what_is_read_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = toys.folder(tmp_path / "model")
    _, adapter = toys.adapters(tmp_path, model)
    given = [f"model={model}", "data=tally", "data.max_steps=3", "data.max_train_samples=3"]
    out = tmp_path / "marked.jsonl"
    with pytest.raises(SystemExit) as end:
        main(["annotate", *given, "--oracle", "24", "--adapter", str(adapter), "--out", str(out), "boundary=every", "boundary.n=12"])
    assert not end.value.code
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 3 and all("<COMP>" in row["reasoning_with_compression"] for row in rows)
    assert all(row["reasoning_with_compression"].replace("<COMP>", "") == row["original_reasoning"] for row in rows)
    capsys.readouterr()
    short = tmp_path / "short.jsonl"
    more = ["--adapter", str(adapter), "--out", str(short), "boundary=every", "boundary.n=4", "boundary.max_segment=8"]
    with pytest.raises(SystemExit) as end:
        main(["annotate", *given, "--oracle", "30", *more])
    assert end.value.code == 2 and "needs 1 <= length <= longest, got 30 and 8" in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        main(["annotate", *given, "--oracle", "8", *more])
    assert not end.value.code
    tokens, bounded = AutoTokenizer.from_pretrained(model), 0
    for line in short.read_text().splitlines():
        whole = json.loads(line)["reasoning_with_compression"]
        sizes = [len(tokens(part)["input_ids"]) for part in whole.split("<COMP>")]
        bounded += max(sizes) <= 8
    assert bounded == 3
    capsys.readouterr()
    for more, said in (([], "--adapter"), (["--adapter", str(adapter)], "is there already; it is not overwritten")):
        with pytest.raises(SystemExit) as end:
            main(["annotate", *given, "--oracle", "24", "--out", str(out), *more])
        assert end.value.code == 2 and said in capsys.readouterr().err
