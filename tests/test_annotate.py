"""Annotated files say where a policy cuts, and are read back as just that."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import toys
from context_memory import cli, reply
from context_memory.annotate import annotate, mark, write
from context_memory.boundaries.base import Boundary
from context_memory.boundaries.every import Every
from context_memory.boundaries.newline import Newline
from context_memory.boundaries.rules import Rules
from context_memory.data.gsm8k import Gsm8k
from context_memory.data.tally import Tally
from context_memory.encode import Encoder
from context_memory.text import Example

WORDS = toys.tokenizer()


@pytest.mark.parametrize("policy", [Newline(), Rules(), Every(n=11)], ids=str)
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_a_file_that_is_read_back_cuts_where_the_policy_does(policy: Boundary, suffix: str, tmp_path: Path) -> None:
    encoder, told = Encoder(WORDS, policy), list(Tally().examples("train")[:40])
    found = annotate(told, encoder.cuts)
    assert (len(found.rows), found.unsafe, found.uncut) == (40, 0, 0)
    write(found.rows, tmp_path / f"a{suffix}")
    data = Gsm8k(path=str(tmp_path / f"a{suffix}"))
    read = {e.prompt: e for split in ("train", "validation", "test") for e in data.examples(split)}
    assert len(read) == len({e.prompt for e in told})
    cuts = 0
    for example in told:
        again = read[example.prompt]
        assert again.target == example.target and again.cuts
        steps, mine = ([s.ids for s in encoder.segments(e) if s.target] for e in (again, example))
        # What the policy closes at the very end, with no text behind it, an annotation leaves open.
        assert steps[:-1] == mine[: len(steps) - 1]
        assert sum(steps, ()) == sum(mine, ())
        cuts += len(again.cuts)
    assert cuts == found.cuts > 80


def test_what_cannot_be_read_back_is_left_out_and_counted() -> None:
    plain = Example("How many?", "1 + 1 = 2\n2 + 2 = 4\n#### 4")
    unsafe = [Example("What is <COMP>?", plain.target), Example("So?", plain.target, context=("It is.",)), Example("Who?", "Bo.\nBo!")]
    found = annotate([plain, *unsafe, Example("What?", "#### 4")], Encoder(WORDS, Newline()).cuts)
    assert (len(found.rows), found.unsafe, found.uncut, found.cuts) == (1, 3, 1, 2)
    assert found.rows[0] == {
        "question": "How many?",
        "reasoning_with_compression": "1 + 1 = 2\n<COMP>2 + 2 = 4\n<COMP>#### 4",
        "answer": "4",
        "original_reasoning": plain.target,
    }
    assert mark(Example("", "a\n \n"), (2,)) == "a\n \n"
    boxed = Example("How many?", "1 + 1 = 2\nIt is \\boxed{2}.", meta={"answer": 2.0})
    found = annotate([boxed, Example("How many?", boxed.target, meta={"answer": 3.0})], Encoder(WORDS, Newline()).cuts)
    assert (found.rows[0]["answer"], len(found.rows), found.unsafe) == ("2", 1, 1)
    marked = "1 + 1 = 2\n<COMP>It is \\boxed{2}."
    assert reply.check(f"{marked}<COMP>", boxed, rewrite=False).marked == found.rows[0]["reasoning_with_compression"] == marked
    assert reply.check(marked.replace("{2}", "{3}"), boxed, rewrite=False).fault == "another final answer"


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        cli.main([str(a) for a in arguments])
    return int(end.value.code or 0)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    toy = toys.folder(tmp_path / "toy")
    common = ("annotate", f"model={toy}", "data=tally", "data.max_train_samples=30")
    assert run(*common, "--out", "a.jsonl") == 0
    assert "30 solutions" in capsys.readouterr().out
    rows = [json.loads(line) for line in Path("a.jsonl").read_text().splitlines()]
    assert len(rows) == 30 and all("<COMP>" in row["reasoning_with_compression"] for row in rows)
    small = ("training.max_steps=1", "training.batch_size=2", "training.eval_samples=0", "training.wandb=false", "model.lora_r=2")
    assert run("train", f"model={toy}", "data=gsm8k", "data.path=a.jsonl", "model.dtype=float32", *small, "--run_id", "marks") == 0
    capsys.readouterr()
    for more, message in (
        (("boundary=turn",), "boundary=turn ends no segment in any of 30 solutions"),
        (("--out", "a.txt"), "must end in .jsonl or .json, got 'a.txt'"),
        (("--out", "none/a.json"), "there is no folder 'none'"),
        (("--out", "a.jsonl"), "is there already; it is not overwritten"),
        (("--endpoint", "http://x/v1"), "--model is missing"),
        (("--endpoint", "http://x/v1", "--model", "m", "boundary=rules"), "with --endpoint the model decides"),
        (("--split", "dev"), "tally has the splits"),
    ):
        assert run(*common, *more) == 2
        assert message in capsys.readouterr().err
