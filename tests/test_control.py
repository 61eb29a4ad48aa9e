"""The window that stands beside a row: as many entries as the row, no fewer, read off the texts without a model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from statistics import mean

import pytest
import torch

import toys
from context_memory import cli, plugins
from context_memory.control import size_for
from context_memory.encode import Encoder
from context_memory.footprint import as_fed, peak_if_said, peak_when_answered
from context_memory.plan import layout
from context_memory.schemes.base import Scheme
from context_memory.schemes.window import Window
from context_memory.testing import tiny_lm
from context_memory.text import Example, Segment

torch.set_num_threads(1)
CONTEXT = [
    Segment((5, 9, 3, 1), pins=(True, False, True, False)), Segment((7, 7, 8, 2, 12)), Segment((1, 2, 8), pins=(False, True, False)),
    Segment((6, 6, 2, 30)),
]  # fmt: skip
QUESTION, ANSWER = Segment((3, 5, 1), compress=False), Segment((4, 11), compress=False, target=True)
SCHEMES = [s for key in plugins.keys("schemes") for s in plugins.find("schemes", key).variants() if s.static]  # type: ignore[attr-defined]


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_what_an_answer_finds_is_what_a_memory_holds(scheme: Scheme) -> None:
    lm = tiny_lm("llama", scheme)
    context = CONTEXT[:1] if scheme.max_steps == 1 else CONTEXT
    memory = lm.memory()
    with torch.no_grad():
        for segment in (*context, QUESTION, ANSWER):
            memory.run([[segment]])
    held = memory.length[0]
    if scheme.slides:  # what is out of view gives its place to the next token
        held -= int(scheme.left_behind(memory.held, torch.tensor([memory.step]), torch.tensor([memory.clock]) - 1).sum())
    given = sum(len(s.ids) for s in (*context, QUESTION))
    assert peak_when_answered(layout([*context, QUESTION, ANSWER], scheme), scheme, given) == held


@pytest.mark.parametrize("told", [False, True], ids=["an answer", "a context"])
@pytest.mark.parametrize("n_comp", [1, 3])
def test_a_window_has_no_fewer_entries_and_hardly_more(told: bool, n_comp: int) -> None:
    scheme: Scheme = plugins.make("schemes", "concat", n_comp=n_comp)  # type: ignore[assignment]
    encoder = Encoder(toys.tokenizer(), plugins.make("boundaries", "every", n=9))  # type: ignore[arg-type]
    long = ["abcdefghi" * k for k in (3, 5, 8)]
    examples = [Example("what?", "so", (text, text)) if told else Example("what?", text) for text in long]

    def entries(scheme: Scheme) -> float:
        texts = [as_fed(encoder.segments(e), encoder) for e in examples]
        before = [sum(len(s.ids) for s in t if not s.target) for t in texts]
        plans = [layout(t, scheme) for t in texts]
        return mean((peak_when_answered if told else peak_if_said)(p, scheme, n) for p, n in zip(plans, before))

    size = size_for(scheme, encoder, examples)
    assert size > 2 and entries(Window(size=size)) >= entries(scheme) > entries(Window(size=size - 1))
    assert size_for(replace(scheme, n_comp=n_comp + 2), encoder, examples) > size  # type: ignore[type-var]  # more of it, more of the other


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    model = toys.folder(tmp_path / "toy")
    task, adapter = toys.adapters(tmp_path, model, boundary="every", pins="[prompt,results]", **{"boundary.n": 9})

    def ccm(*arguments: str) -> tuple[int, str]:
        few = ("model.dtype=float32", "evaluation.max_samples=3", "evaluation.generate=false", "--window")
        with pytest.raises(SystemExit) as end:
            cli.main(["evaluate", *arguments, *few])
        return int(end.value.code or 0), capsys.readouterr().err

    code, err = ccm("--adapter", str(adapter), "--out", "rows")
    assert code == 0, err
    tree = {row["name"]: row for row in json.loads(Path("rows/table.json").read_text())}
    full, concat, window, nothing = tree
    assert (full, concat, nothing) == ("full", "concat", "nothing") and window.startswith("window ")
    settings = {name: json.loads(Path(f"rows/{name.replace(' ', '-')}/settings.json").read_text()) for name in tree}
    assert settings[window]["scheme"]["name"] == "window" and settings[window]["scheme"]["size"] == int(window.split()[1])
    assert settings[window]["pins"] == settings[concat]["pins"] != settings[nothing]["pins"]
    lines = {name: Path(f"rows/{name.replace(' ', '-')}/predictions.jsonl").read_text().splitlines() for name in (concat, window)}
    held = {name: mean(json.loads(line)["target_peak"] for line in found) for name, found in lines.items()}
    assert held[window] >= held[concat] > 0

    assert ccm("--adapter", str(adapter), "--sweep", "pins=[prompt],[prompt,results]", "--alone", "--out", "two")[0] == 0
    names = [row["name"] for row in json.loads(Path("two/table.json").read_text())]
    assert names == [*(p := ["pins=prompt", "pins=prompt+results"]), *(f"window for {name}" for name in p)]

    code, err = ccm("scheme=full", f"model.adapter={task}", "--out", "none")
    assert code == 2 and "stands beside a scheme that compresses, got scheme=full" in err
    code, err = ccm("--adapter", str(adapter), "boundary=classifier", "--out", "none")
    assert code == 2 and "nothing learnt at" in err and not Path("none").exists()

    with pytest.raises(SystemExit) as end:  # what is kept is read off hidden states: the model says how large a window is that large
        cli.main(["pins", "train", "--adapter", str(adapter), "--problems", "12", "--epochs", "1", "model.dtype=float32"])
    assert end.value.code in (None, 0), capsys.readouterr().err
    code, err = ccm("--adapter", str(adapter), "pins=[prompt,learned]", "pins.learned.budget=2", "--alone", "--out", "learned")
    assert code == 0, err
    concat, window = (row["metrics"]["equal_length_ratio"] for row in json.loads(Path("learned/table.json").read_text()))
    assert window == pytest.approx(concat, rel=0.03)
