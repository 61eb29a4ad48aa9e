"""Learned pins: the gradients say what they claim, and what is kept while decoding is what is kept offline."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import toys
from context_memory import cutting, head, saliency
from context_memory.adapter import Base
from context_memory.boundaries.every import Every
from context_memory.cli import main
from context_memory.encode import Encoder
from context_memory.errors import UserError
from context_memory.generate import Settings, generate
from context_memory.model import CompressedLM
from context_memory.pins.learned import FILE, Learned
from context_memory.pins.prompt import Prompt
from context_memory.plan import layout
from context_memory.reading import likelihoods
from context_memory.schemes.concat import Concat
from context_memory.schemes.merge import Merge
from context_memory.testing import tiny_lm
from context_memory.text import Example, Segment

torch.set_num_threads(1)
WHOLE = [
    Segment((3, 1), compress=False, pins=(True, True)),
    Segment((5, 9, 3, 7), loss=(True,) * 4, target=True),
    Segment((2, 8), loss=(True,) * 2, target=True, pins=(False, True)),
    Segment((4, 4, 6), loss=(True,) * 3, compress=False, target=True),
]


@torch.no_grad()
def nll(lm: CompressedLM, weight: torch.Tensor) -> float:
    return float(saliency.shown(lm, layout(WHOLE, lm.scheme), weight))


def test_gains_are_the_slope_of_the_likelihood() -> None:
    lm = tiny_lm("llama", Concat(n_comp=2))
    plan = layout(WHOLE, lm.scheme)
    found = saliency.gains(lm, WHOLE)
    at = plan.tokens.raw[0].nonzero()[:, 0]
    for i in range(len(found)):
        step = torch.zeros(plan.shape[1], dtype=torch.float64)
        step[at[i]] = 0.03  # the model norms in float32: a smaller step would measure its rounding
        up, down = (nll(lm, saliency.FAINT + sign * step) for sign in (1, -1))
        assert float(found[i]) == pytest.approx((down - up) / 0.06, rel=0.01, abs=2e-5)
    assert (found[:2] == 0).all() and (found[-3:] == 0).all() and float(found[7]) == 0  # pinned, or never forgotten
    assert (found[2:6] != 0).all()


def test_out_of_sight_it_is_the_compressed_likelihood() -> None:
    lm = tiny_lm("llama", Concat(n_comp=2))
    plan = layout(WHOLE, lm.scheme)
    ((compressed, _),) = likelihoods(lm, [plan])
    hidden, faint = (nll(lm, torch.full((plan.shape[1],), w, dtype=torch.float64)) for w in (-1e9, saliency.FAINT))
    assert hidden == pytest.approx(compressed, abs=1e-9) and abs(faint - compressed) > 1e-3


def test_where_no_token_can_be_shown_it_is_refused() -> None:
    for lm in (tiny_lm("llama", Merge(n_comp=1)), tiny_lm("qwen2", Concat(n_comp=1))):
        with pytest.raises(UserError, match="scheme=concat"):
            saliency.gains(lm, WHOLE)


def learned(at: Path, size: int) -> Learned:
    torch.manual_seed(1)
    made = head.Head(size, 8).double()
    with torch.no_grad():
        for p in made.parameters():
            p.normal_(std=1.0)
    head.save(made, at / FILE, {"model": "tiny", "weights": "w", "task": ""})
    return Learned(budget=2, path=str(at))


def encoder_for(lm: CompressedLM, pins: list) -> Encoder:  # type: ignore[type-arg]
    encoder = Encoder(toys.tokenizer(), Every(n=5), pins, chat=False)
    size = lm.base.config.vocab_size
    encoder.ids = lambda text: [1 + ord(c) % (size - 1) for c in text]  # type: ignore[method-assign]
    return encoder


def test_what_is_kept_while_decoding_is_what_is_kept_offline(tmp_path: Path) -> None:
    lm = tiny_lm("llama", Concat(n_comp=1))
    lm.facts = Base("tiny", lm.n_layers, lm.base.config.hidden_size, lm.base.config.vocab_size, "w")
    encoder = encoder_for(lm, [Prompt(), learned(tmp_path, lm.base.config.hidden_size)])
    example = Example("1 + 2?", "")
    (out,) = generate(lm, encoder, [encoder.prompt(example)], Settings(max_new_tokens=24))
    encoder._answer = lambda e: (tuple(out.ids), (0,), list(range(len(out.ids))))  # type: ignore[method-assign]
    whole = cutting.segments(lm, encoder, example)
    assert [sum(s.pins) for s in whole if s.target and s.compress] == [2, 2, 2, 2]
    with torch.no_grad():
        plan = layout(whole, lm.scheme)
        logits = lm(plan)[0][plan.tokens.raw[0]]
    given = len(encoder.prompt(example)[0].ids)
    assert logits[given - 1 :].argmax(-1).tolist()[: len(out.ids)] == out.ids
    bare = layout([replace(s, pins=s.pins if not s.target else ()) for s in whole], lm.scheme)
    with torch.no_grad():
        assert not torch.allclose(lm(bare)[0][bare.tokens.raw[0]], logits, atol=1e-3)  # the control: what is kept matters


def test_the_command_teaches_and_the_pins_are_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = toys.folder(tmp_path / "model")
    _, adapter = toys.adapters(tmp_path, model)
    small = [f"model={model}", "data.max_steps=3"]
    on = tmp_path / "tally" / "on" / "adapter"  # an adapter that goes on from one takes its head along
    for arguments in (
        ["pins", "train", "--adapter", str(adapter), *small, "--problems", "20", "--budget", "3"],
        ["evaluate", "--adapter", str(adapter), *small, "pins=[prompt,learned]", "pins.learned.budget=3", "boundary=every", "boundary.n=8",
         "evaluation.max_samples=2", "generation.max_new_tokens=40", "--alone", "--out", str(tmp_path / "out")],
        ["train", *small, f"model.adapter={adapter}", "model.dtype=float32", "model.lora_r=2", "data=tally", "scheme=concat",
         "boundary=newline", "pins=[prompt,learned]", "training.max_steps=1", "training.eval_samples=2", "run_id=on", f"output={tmp_path}"],
        ["evaluate", "--adapter", str(on), *small, "evaluation.max_samples=2", "evaluation.generate=false", "--alone",
         "--out", str(tmp_path / "out-on")],
    ):  # fmt: skip
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert not end.value.code, capsys.readouterr()
    for name, said in (("none/pins.safetensors", "there is no folder"), ("pins.json", "must end in .safetensors")):
        for command in ("pins", "boundary"):
            with pytest.raises(SystemExit) as end:
                main([command, "train", "--adapter", str(adapter), *small, "--out", str(tmp_path / name)])
            assert end.value.code == 2 and said in capsys.readouterr().err
    kept = json.loads((adapter / "pins.json").read_text())["kept"]
    assert kept["best possible"][0] >= max(share for name, (share, _) in kept.items() if name != "best possible")
    assert all(length <= 3 for _, length in kept.values())
    for out in ("out", "out-on"):
        settings = json.loads((tmp_path / out / "concat" / "settings.json").read_text())
        assert settings["pins"][1]["path"] == head.digest(adapter / FILE)
    assert head.digest(on / FILE) == head.digest(adapter / FILE)
