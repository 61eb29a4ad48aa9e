"""Solutions that the model writes itself, kept where their final answer is right (or all of them): targets in its own words.

A memory that is trained on another author's prose moves the model away from its own, and costs accuracy before anything is
compressed. So solutions are sampled, and the right ones kept (Yuan et al. 2023, arXiv:2308.01825). Wrong ones serve as well where a
memory alone is trained: it is to give the frozen model what its full context would, mistakes included. A row is {question, answer,
original_reasoning}, which `data=gsm8k` reads to the letter; a text that the tokenizer would not cut into the very tokens that the
model chose is left out. Finished batches, wrong answers too, are lines of `<out>.partial.jsonl` until all are there.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.progress import Progress

from context_memory import output
from context_memory.annotate import Row, write
from context_memory.begun import Partial, partial_of
from context_memory.data._answers import digits, final_number, same
from context_memory.data.base import Dataset
from context_memory.encode import Encoder
from context_memory.errors import InputError, UserError
from context_memory.evaluate import Settings, describe, fits
from context_memory.generate import Decoder
from context_memory.model import CompressedLM
from context_memory.output import Output
from context_memory.text import Example


@dataclass(frozen=True)
class Line:
    """One sampled answer; `n` is its place in the order of sampling."""

    n: int
    right: bool
    reason: str
    """Why it ended: `eos` or `length`."""
    tokens: int
    same_tokens: bool
    """The text, tokenised, gives the tokens that the model chose."""
    text: str


@dataclass(frozen=True)
class Traces:
    """What was sampled, what was kept, and why the rest of those that were wanted (the right ones, or all with a number) was not."""

    problems: int
    sampled: int
    right: int
    kept: int
    mean_tokens: float
    """Of those that were kept."""
    cut_off: int
    other_tokens: int
    twice: int


def sample(
    lm: CompressedLM, encoder: Encoder, dataset: Dataset, examples: Sequence[Example], decode: output.Settings, out: Path,
    *, samples: int = 1, batch_size: int = 32, wrong: bool = False, progress: Progress | None = None,
) -> Traces:  # fmt: skip
    """Answer every example `samples` times and write the answers that ended by themselves to `out`: the right ones, or with `wrong`
    all that come to a number, which is then the row's answer.

    Raises:
        UserError: settings that contradict each other or what was begun; no answer to keep; a batch that does not fit.
    """
    lm.family.must_be_causal("sampling traces")
    check(examples, decode, out, samples, batch_size)
    prompts = [encoder.prompt(e) for e in examples]
    length = [sum(len(s.ids) for s in p) for p in prompts]
    order = sorted(range(len(examples)), key=lambda i: -length[i])  # the longest first: what does not fit, shows at once
    queue = [i for i in order for _ in range(samples)]
    settings = describe(lm, encoder, Settings(decode, likelihood=False)) | {"samples": samples, "problems": _digest(examples)}
    partial = Partial(out, settings)
    lines = [Line(**line) for line in partial.lines]
    task = progress.add_task("traces", total=len(queue), completed=len(lines), speed="") if progress else None
    lm.eval()
    while len(lines) < len(queue):
        start = len(lines)
        batch = queue[start : start + batch_size]
        # A sample has the random numbers of its place in the queue, whatever the batch.
        with fits(batch_size, "--batch-size"):
            decoder = Decoder(lm, encoder, [prompts[i] for i in batch], replace(decode, seed=decode.seed + start))
            for speed in _speeds(decoder):
                if progress and task is not None:
                    progress.update(task, speed=speed)
        found = [_line(start + n, encoder, dataset, examples[i], o) for n, (i, o) in enumerate(zip(batch, decoder.outputs, strict=True))]
        partial.add(*(asdict(line) for line in found))
        lines += found
        if progress and task is not None:
            progress.update(task, completed=len(lines))
    kept, traces = _sift(examples, queue, lines, wrong)
    if not kept:
        why = f"{traces.right} right, {traces.cut_off} of them cut off (generation.max_new_tokens={decode.max_new_tokens})"
        raise UserError(f"none of {len(lines)} answers can be kept: {why}. They stay in '{partial.path}'; delete it to sample anew.")
    write(kept, out)
    partial.done()
    return traces


def check(examples: Sequence[Example], decode: output.Settings, out: Path, samples: int, batch_size: int) -> None:
    """Raises UserError for what can be seen before a model is loaded."""
    if samples < 1 or batch_size < 1:
        raise InputError(f"samples and batch size must be at least 1, got {samples} and {batch_size}.")
    if samples > 1 and not decode.temperature:
        raise InputError(f"{samples} samples of a problem are all alike at generation.temperature=0; give one, such as 0.7.")
    if out.suffix not in (".json", ".jsonl"):
        raise UserError(f"--out must end in .jsonl or .json, got '{out}'.")
    if not out.parent.is_dir():
        raise UserError(f"--out={out}: there is no folder '{out.parent}'; make it first.")
    if out.exists() and not partial_of(out).exists():
        raise UserError(f"'{out}' is there already; name another --out, or delete it.")
    if not examples:
        raise UserError("no problems to sample from; is --max-problems 0, --skip past the end, or the split empty?")
    for e in examples:
        if e.context or not isinstance(e.meta.get("answer"), int | float):
            raise UserError(f"item '{e.id}' has a context, or not one number as its answer: a row could not give it back; use other data.")


def _digest(examples: Sequence[Example]) -> str:
    """What stands for all questions and their answers, in their order."""
    return hashlib.sha256(json.dumps([[e.prompt, e.meta["answer"]] for e in examples]).encode()).hexdigest()


def _speeds(decoder: Decoder) -> Iterator[str]:
    """Decodes; says now and then how fast."""
    began = time.perf_counter()
    for count, _ in enumerate(decoder.run(), 1):
        if count % len(decoder.outputs) == 0:
            yield f"{count / (time.perf_counter() - began):.0f} tokens/s"


def _line(n: int, encoder: Encoder, dataset: Dataset, example: Example, out: Output) -> Line:
    # A dataset may be stricter than `final_number`, by which the row is read back; the answer must be right to both.
    right = dataset.score(example, out.text)["correct"] == 1 and same(final_number(out.text), example.meta["answer"])
    return Line(n, right, out.reason, len(out.ids), _same_tokens(encoder, out), out.text)


def _same_tokens(encoder: Encoder, out: Output) -> bool:
    """A policy's own marks are no part of the text; whoever encodes it puts them in anew."""
    return encoder.answer(Example("", out.text)) == tuple(i for i in out.ids if i not in encoder.mark)


def _sift(examples: Sequence[Example], queue: Sequence[int], lines: Sequence[Line], wrong: bool) -> tuple[list[Row], Traces]:
    """The rows in the order of the examples, and the count."""
    right = sum(line.right for line in lines)
    wanted = [line for line in lines if line.right or (wrong and final_number(line.text) is not None)]
    ended = [line for line in wanted if line.reason == "eos"]
    faithful = [line for line in ended if line.same_tokens]
    kept: dict[tuple[str, str], Line] = {}
    for line in sorted(faithful, key=lambda line: queue[line.n]):
        kept.setdefault((examples[queue[line.n]].prompt, line.text), line)
    rows = [
        {
            "question": question,
            "answer": f"#### {digits(final_number(text) or 0.0)}",
            "original_reasoning": text,
        }
        for question, text in kept
    ]
    tokens = sum(line.tokens for line in kept.values()) / max(1, len(kept))
    counts = (len(wanted) - len(ended), len(ended) - len(faithful), len(faithful) - len(kept))
    return rows, Traces(len(examples), len(lines), right, len(kept), tokens, *counts)
