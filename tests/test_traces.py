"""The model's own right solutions: which are kept, that they come back to the letter, and that sampling goes on after a kill."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import toys
from context_memory import cli, traces
from context_memory.annotate import annotate, write
from context_memory.begun import Partial
from context_memory.boundaries.newline import Newline
from context_memory.data.gsm8k import Gsm8k
from context_memory.encode import Encoder
from context_memory.errors import UserError
from context_memory.generate import Decoder, Settings, generate
from context_memory.loading import load
from context_memory.text import Example
from context_memory.traces import sample

WORDS = toys.tokenizer()
SAID = {
    "1+1?": (" 1+1=2\nIt is \\boxed{2}", 2),
    "2+1?": ("2+1=3\nThe answer is 3.", 3),
    "2+2?": ("2+2=4\n#### 4\n", 4),
    "1,000+200 is?": ("So 1,200.", 1200),
    "3+3?": ("3+3=7\n#### 7", 6),  # wrong
    "4+4?": ("So 8.\n" + "8. " * 12, 8),  # right and too long
    "5+5?": ("I do not know", 10),  # no number
}
"""Question, what the toy is taught to say, the right answer."""
EXAMPLES = [Example(q, f"#### {gold}", id=str(i), meta={"answer": float(gold)}) for i, (q, (_, gold)) in enumerate(SAID.items())]
KEPT = [q for q in SAID if q not in ("3+3?", "4+4?", "5+5?")]
GREEDY = Settings(max_new_tokens=30)


@pytest.fixture(scope="module")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy, taught by heart what SAID says."""
    at = toys.folder(tmp_path_factory.mktemp("speaker") / "toy")
    model = AutoModelForCausalLM.from_pretrained(at, dtype=torch.float32)
    texts = [f"<|user|>{q}<|end|><|assistant|>{said}<|end|>" for q, (said, _) in SAID.items()]
    batch = WORDS(texts, return_tensors="pt", padding=True, add_special_tokens=False, return_token_type_ids=False)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 2:
                p.mul_(0.3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(400):
        loss = model(**batch, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(at)
    return at


@pytest.fixture(scope="module")
def lm(speaker: Path):  # type: ignore[no-untyped-def]
    from context_memory.plugins import make

    return load(str(speaker), scheme=make("schemes", "full"), dtype=torch.float32)


@pytest.fixture
def draw(lm, tmp_path: Path):  # type: ignore[no-untyped-def]
    def draw(name: str = "own.jsonl", decode: Settings = GREEDY, examples: Sequence[Example] = EXAMPLES, **more):  # type: ignore[no-untyped-def]
        found = sample(lm, Encoder(lm.tokenizer, Newline()), Gsm8k(), examples, decode, tmp_path / name, **more)
        text = (tmp_path / name).read_text()
        return found, json.loads(text) if name.endswith(".json") else [json.loads(line) for line in text.splitlines()]

    return draw


def read_back(path: Path) -> dict[str, Example]:
    data = Gsm8k(path=str(path))
    return {e.prompt: e for split in ("train", "validation", "test") for e in data.examples(split)}


def test_right_answers_that_ended_are_kept(draw, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for suffix in (".jsonl", ".json"):
        found, rows = draw(f"own{suffix}", batch_size=3)
        assert [row["question"] for row in rows] == KEPT  # in the order of the data, not of sampling
        assert [row["answer"] for row in rows] == ["#### 2", "#### 3", "#### 4", "#### 1200"]
        assert [row["original_reasoning"] for row in rows] == [SAID[q][0] for q in KEPT]
        assert (found.problems, found.sampled, found.right, found.cut_off, found.kept) == (7, 7, 5, 1, 4)
        assert found.mean_tokens == sum(len(SAID[q][0]) for q in KEPT) / 4
    assert not list(tmp_path.glob("*partial*"))


def test_wrong_answers_are_kept_where_they_are_wanted(draw, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """With the number that they come to; one that is cut off or comes to none is of no use all the same."""
    found, rows = draw(wrong=True)
    assert [row["question"] for row in rows] == [*KEPT, "3+3?"]
    assert rows[-1] == {"question": "3+3?", "answer": "#### 7", "original_reasoning": "3+3=7\n#### 7"}
    assert (found.right, found.cut_off, found.kept) == (5, 1, 5)
    assert read_back(tmp_path / "own.jsonl")["3+3?"].meta["answer"] == 7


def test_what_is_read_back_is_what_the_model_said(draw, lm, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """To the token, for the plain traces and for those that `annotate` marks; each gives the right number."""
    draw()
    encoder = Encoder(lm.tokenizer, Newline())
    plain = read_back(tmp_path / "own.jsonl")
    marked = annotate(plain.values(), encoder.cuts)
    assert (len(marked.rows), marked.unsafe, marked.uncut) == (3, 0, 1)  # "So 1,200." is one segment
    write(marked.rows, tmp_path / "marked.jsonl")
    cut = read_back(tmp_path / "marked.jsonl")
    assert all(cut[q].target == plain[q].target and cut[q].meta == plain[q].meta and cut[q].cuts for q in cut)
    assert set(plain) == set(KEPT) and len(cut) == 3
    for question in KEPT:
        (out,) = generate(lm, encoder, [encoder.asked(question, first=True)], GREEDY)
        for example in (plain[question], cut.get(question, plain[question])):
            ids = [i for s in encoder.segments(example) if s.target for i in s.ids]
            assert ids == [*out.ids, lm.tokenizer.eos_token_id]
            assert Gsm8k().score(example, out.text)["correct"] == 1


def test_a_text_that_tokenises_differently_is_left_out(draw, lm, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    joining = toys.tokenizer()
    joining.add_tokens(["=2"])  # the model says "=" and "2"
    monkeypatch.setattr(lm, "tokenizer", joining)
    found, rows = draw()
    assert [row["question"] for row in rows] == KEPT[1:]
    assert (found.other_tokens, found.kept) == (1, 3)


def test_sampling_keeps_one_of_each_text(draw) -> None:  # type: ignore[no-untyped-def]
    warm = Settings(30, temperature=1.0)
    found, rows = draw(decode=warm, samples=4, batch_size=32)
    assert found.sampled == 28 and found.twice > 0
    texts = [(row["question"], row["original_reasoning"]) for row in rows]
    assert len(texts) == len(set(texts)) == found.kept == found.right - found.cut_off - found.twice
    _, other = draw("other.jsonl", decode=warm, samples=4, batch_size=5)
    assert other == rows  # a sample has its own random numbers, whatever the batch
    with pytest.raises(UserError, match=r"4 samples of a problem are all alike at generation\.temperature=0"):
        draw("third.jsonl", samples=4)


def test_it_goes_on_where_it_was_killed(draw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    hot = Settings(30, temperature=1.5)
    common = {"decode": hot, "samples": 2, "batch_size": 3}
    whole, rows = draw("whole.jsonl", **common)
    add, asked, fed = Partial.add, [], []

    def dies(self: Partial, *lines: dict[str, object]) -> None:
        add(self, *lines)
        asked.append(len(lines))
        if len(asked) == 2:
            self.path.write_bytes(self.path.read_bytes()[:-9])  # the last line of the second batch was not yet on the disk
            raise KeyboardInterrupt

    class Counted(Decoder):
        def __init__(self, lm, encoder, prompts, settings) -> None:  # type: ignore[no-untyped-def]
            fed.append((len(prompts), settings.seed))
            super().__init__(lm, encoder, prompts, settings)

    monkeypatch.setattr(Partial, "add", dies)
    monkeypatch.setattr(traces, "Decoder", Counted)
    with pytest.raises(KeyboardInterrupt):
        draw(**common)
    assert not (tmp_path / "own.jsonl").exists()
    for change, key in (
        ({"decode": Settings(29, temperature=1.5)}, "decode"),
        ({"samples": 3}, "samples"),
        ({"examples": EXAMPLES[:6]}, "problems"),
    ):
        with pytest.raises(UserError, match=rf"own\.jsonl\.partial\.jsonl' was begun with {key} = .*, got .*another --out"):
            draw(**common | change)
    assert draw(**common | {"batch_size": 4}) == (whole, rows)
    assert fed == [(3, 0), (3, 3), (4, 5), (4, 9), (1, 13)]  # five answers were whole
    with pytest.raises(UserError, match=r"own\.jsonl' is there already"):
        draw(**common)


def test_what_cannot_be_given_back_or_kept_is_said(draw, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for examples, message in (
        ([Example("2+2?", "four", id="w")], "item 'w' has a context, or not one number"),
        ([], "no problems to sample from"),
        (EXAMPLES[4:], r"none of 3 answers can be kept: \d right, \d of them cut off \(generation.max_new_tokens=30\)"),
    ):
        with pytest.raises(UserError, match=message):
            draw(examples=examples)
    assert not (tmp_path / "own.jsonl").exists()


def test_the_command(speaker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            cli.main([str(a) for a in arguments])
        said = capsys.readouterr()
        return int(end.value.code or 0), said.out, said.err

    rows = [{"question": q, "answer": f"#### {gold}"} for q, (_, gold) in SAID.items()]
    (tmp_path / "data").mkdir()
    Path("data/test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    small = ("model.dtype=float32", "generation.max_new_tokens=30", "--split", "test")
    common = ("traces", f"model={speaker}", "data=gsm8k", "data.path=data", *small)
    code, out, err = run(*common, "--max-problems", "5")
    assert code == 0, err
    assert out.splitlines()[-1] == "5 problems, 5 sampled, 4 right (80.0 %), 4 kept, 16 tokens each: traces.jsonl"
    assert set(read_back(Path("traces.jsonl"))) == set(KEPT)
    parts = [("--max-problems", "2"), ("--skip", "2", "--max-problems", "3")]
    for i, part in enumerate(parts):
        assert run(*common, *part, "--out", f"part{i}.jsonl")[0] == 0
    assert "".join(Path(f"part{i}.jsonl").read_text() for i in range(2)) == Path("traces.jsonl").read_text()
    ran = []
    counted = traces.Traces(1, 1, 1, 1, 9.0, 0, 0, 0)
    monkeypatch.setattr(traces, "sample", lambda lm, *a, **k: ran.append((lm.scheme.name, lm.task)) or counted)
    task, concat = toys.adapters(tmp_path / "adapters", speaker)
    for adapter, *scheme in ((task,), (concat,), (concat, "scheme=concat")):
        assert run(*common, *scheme, "--adapter", adapter, "--out", "b.jsonl")[0] == 0
    assert [name for name, _ in ran] == ["full", "full", "concat"]
    assert len({digest for _, (_, digest) in ran}) == 1  # the task adapter is merged in all of them
    for more, message in (
        (("--samples", "2", "--out", "b.jsonl"), "all alike at generation.temperature=0"),
        (("--out", "a.txt"), "must end in .jsonl or .json"),
        (("--skip", "99", "--out", "b.jsonl"), "no problems to sample from"),
        (("--out", "none/a.json"), "there is no folder 'none'"),
        ((), "'traces.jsonl' is there already"),
        (("scheme=concat", "--out", "b.jsonl"), "needs a compression adapter"),
    ):
        code, _, err = run(*common, *more)
        assert code == 2 and message in err, err
