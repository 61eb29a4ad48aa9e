"""Evaluation: any data x scheme -> `predictions.jsonl` and `metrics.json`. Every row of every table runs through these lines.

Items are independent: each is decoded by the one decode loop, its target is run once teacher-forced, and its line is written when
its batch is done. The same command again keeps the lines that are there; a note of all settings that an answer depends on
(weights, adapter, scheme, boundary, pins, decoding) refuses to mix them with others.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

from context_memory import encoder_generate, head, output
from context_memory.attention import implementation_of
from context_memory.data.base import Dataset
from context_memory.encode import Encoder
from context_memory.errors import InputError, UserError
from context_memory.items import Item, answered, batches, chosen, held, recalled
from context_memory.metrics import Metrics, Prediction, summarise
from context_memory.model import CompressedLM
from context_memory.profiling import DECODING, profiled
from context_memory.reading import likelihoods, read
from context_memory.recall import recall
from context_memory.records import Store, facts_of_this_run
from context_memory.schemes.base import Scheme
from context_memory.text import Example


@dataclass(frozen=True)
class Settings:
    """How to evaluate."""

    decode: output.Settings = field(default_factory=output.Settings)
    batch_size: int = 8
    generate: bool = True
    likelihood: bool = True
    """Also the negative log-likelihood of the targets."""
    choose: bool = True
    """Where an item has options, the likeliest of them is its answer; false: it is written like any other."""
    recall: bool = False
    """Also which numbers of its answer the memory still gives back."""
    profile: bool = False
    """Also a trace of a few decode steps of the first batch that is run."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InputError(f"batch_size must be at least 1, got {self.batch_size}.")
        if not (self.generate or self.likelihood):
            raise InputError("generate and likelihood are both off: there is nothing to evaluate; leave one on.")
        for name in ("recall", "profile"):
            if getattr(self, name) and not self.generate:
                raise InputError(f"{name} looks at answers and generate is off: there are none; leave generate on.")


def evaluate(
    lm: CompressedLM, encoder: Encoder, dataset: Dataset, examples: Sequence[Example], settings: Settings, folder: str | Path,
    *, name: str = "", notes: dict[str, Any] | None = None, fresh: bool = False, progress: Progress | None = None,
) -> Metrics:  # fmt: skip
    """Answer and score `examples`, in batches of like length; what `folder` holds already is kept.

    Args:
        name: of the row, for tables; the scheme's if not given.
        notes: anything else that `metrics.json` should say about this run.
        fresh: forget what the folder holds.

    Raises:
        UserError: the folder holds an evaluation with other settings; a batch that does not fit; the scheme should have
            compressed and never did; nothing but a likelihood is asked for and the scheme has none (else that cell stays empty).
    """
    examples = [e if e.id else replace(e, id=str(i)) for i, e in enumerate(examples)]
    if not examples:
        raise UserError("no examples to evaluate; is evaluation.max_samples 0, or the split empty?")
    name = name or lm.scheme.name
    encoder.check(lm.origin)
    if settings.likelihood and not lm.scheme.static:
        if not settings.generate:
            raise UserError(f"scheme '{lm.scheme.name}' chooses by the keys and has no likelihood; leave evaluation.generate on.")
        settings = replace(settings, likelihood=False)
    if settings.recall:
        lm.family.must_be_causal("evaluation.recall")
    try:
        items = [Item(e, encoder, lm, settings.likelihood) for e in examples]
    except ValueError as e:
        raise UserError(str(e)) from e
    store = Store(Path(folder), describe(lm, encoder, settings), fresh)
    done = store.known(examples)
    task = progress.add_task(name, total=len(items), completed=len(done), speed="") if progress else None
    profile = settings.profile
    lm.eval()
    for start, batch in batches(items, settings.batch_size):
        if all(item.example.id in done for item in batch):
            continue
        with fits(settings.batch_size, "evaluation.batch_size"), profiled(profile, store.folder, DECODING) as step:
            lines = _run(lm, encoder, dataset, batch, settings, start, _Ticker(progress, task, len(done), batch), step)
        profile = False
        store.add(lines)
        done |= {line.id: line for line in lines}
    if progress and task is not None:
        progress.update(task, completed=len(items))
    lines = [done[e.id] for e in examples]
    _must_fire(lm.scheme, items, lines)
    metrics = summarise(lines, lm.kv_bytes)
    here = {
        "kv_bytes": lm.kv_bytes,
        "batch_size": settings.batch_size,
        "device": str(lm.device),
        "threads": torch.get_num_threads(),
    }
    store.finish(lines, metrics, {"name": name, "run": {**facts_of_this_run(), **here, **(notes or {})}})
    return metrics


def _run(
    lm: CompressedLM, encoder: Encoder, dataset: Dataset, batch: Sequence[Item], settings: Settings, start: int, ticker: _Ticker,
    step: Callable[[], None],
) -> list[Prediction]:  # fmt: skip
    """The lines of one batch; `step` is called after every decode step but the last."""
    lines = [i.line for i in batch]
    if settings.choose and lm.family.causal and all(i.example.options for i in batch):
        readings = read(lm, encoder, [i.example for i in batch], len(batch))
        ticker.finish()
        return [chosen(i, reading, dataset, settings.likelihood) for i, reading in zip(batch, readings)]
    if settings.generate:
        began = time.perf_counter()
        how = replace(settings.decode, seed=settings.decode.seed + start)
        decoder = encoder_generate.decoder(lm, encoder, [i.prompt for i in batch], how)
        last = -1
        for row, _ in decoder.run():
            if row <= last:  # rows come in order, so this one has begun the next step
                step()
            last = row
            ticker.token()
        seconds = (time.perf_counter() - began) / len(batch)
        lines = [answered(i, out, seconds, dataset) for i, out in zip(batch, decoder.outputs)]
        if settings.recall:
            found = recall(lm, encoder, [i.example for i in batch], [out.text for out in decoder.outputs])
            lines = [recalled(line, numbers) for line, numbers in zip(lines, found)]
    if settings.likelihood and lm.family.causal and all(i.example.context for i in batch) and not encoder.readers:
        readings = read(lm, encoder, [replace(i.example, options=()) for i in batch], len(batch))
        lines = [held(replace(line, nll=r.nll[0], nll_tokens=r.tokens[0]), r) for line, r in zip(lines, readings)]
    elif settings.likelihood:
        sums = likelihoods(lm, [i.plan for i in batch])
        lines = [replace(line, nll=nll, nll_tokens=n) for line, (nll, n) in zip(lines, sums)]
    ticker.finish()
    return lines


# ---- guards -----------------------------------------------------------------------------------------------------------------


def _must_fire(scheme: Scheme, items: Sequence[Item], lines: Sequence[Prediction]) -> None:
    """Raises UserError if the scheme hides and nothing was ever compressed: the numbers would be those of `full`."""
    if not scheme.hides:
        return
    answered = [line for line in lines if line.answer is not None]
    if answered and any(i.has_boundary for i in items) and not any(line.compressions for line in answered):
        raise UserError(
            f"not one of {len(answered)} answers was compressed, although scheme '{scheme.name}' forgets and the targets have "
            "boundaries: no answer ever comes to one. Is the model trained for this data (model.adapter), and is it the boundary "
            "that the adapter was trained with?"
        )
    freed = any(line.peak_reasoning_kv < line.tokens - 1 for line in answered)  # of an answer longer than any target
    if not freed and all(item.known for item in items) and not any(item.hides for item in items):
        raise UserError(
            f"scheme '{scheme.name}' hides no token of any of the {len(items)} targets: this would measure the full context. "
            "Does the boundary ever end a segment of this data, and do the pins leave anything to forget?"
        )


@contextmanager
def fits(batch_size: int, setting: str) -> Iterator[None]:
    """Where memory runs out, a UserError that says which setting to lower."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as e:
        if not isinstance(e, (torch.OutOfMemoryError, MemoryError)) and "allocate memory" not in str(e):  # torch's word on a CPU
            raise
        why = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise UserError(f"a batch of {batch_size} does not fit this device; lower {setting}. ({why})") from e


def describe(lm: CompressedLM, encoder: Encoder, settings: Settings) -> dict[str, Any]:
    """Everything that an answer depends on, as plain data. Not batch size and threads: they only round differently."""
    return {
        "model": {"name": lm.facts.name, "weights": lm.facts.weights} if lm.facts else None,
        "task": lm.task[1] if lm.task else None,
        "adapter": lm.card.files if lm.card is not None and lm.peft is not None else None,
        "dtype": str(lm.base.dtype).removeprefix("torch."),
        "attention": implementation_of(lm.base),
        "scheme": _named(lm.scheme),
        "positions": lm.positions,
        "gate": lm.gate if lm.peft is not None else None,
        "boundary": _named(encoder.boundary),
        "pins": [_named(p) for p in encoder.pins],
        "chat": encoder.chat,
        "prompt": encoder.question,
        "decode": asdict(settings.decode) | {"stop": list(settings.decode.stop)} if settings.generate else None,
        "likelihood": settings.likelihood,
        **({} if settings.choose else {"choose": False}),
        **({"recall": True} if settings.recall else {}),
    }


def _named(plugin: Any) -> dict[str, Any]:
    """A plug-in's settings; of a file that it reads, the content counts and not the place."""
    fields = asdict(plugin) if is_dataclass(plugin) and not isinstance(plugin, type) else {}
    if isinstance(file := getattr(plugin, "file", None), Path):
        fields["path"] = head.digest(file) if file.is_file() else str(file)
    return {"name": type(plugin).__module__.rsplit(".", 1)[-1], **fields}


class _Ticker:
    """Moves the bar while a batch is decoded: an item's worth for as many tokens as its target has."""

    def __init__(self, progress: Progress | None, task: Any, done: int, batch: Sequence[Item]) -> None:
        self.progress, self.task, self.done, self.rows = progress, task, done, len(batch)
        self.expected, self.count, self.began = sum(i.target_tokens for i in batch), 0, time.perf_counter()

    def token(self) -> None:
        self.count += 1
        if self.progress is not None and self.count % self.rows == 0:
            part = min(0.95, self.count / max(1, self.expected))
            speed = f"{self.count / (time.perf_counter() - self.began):.0f} tokens/s"
            self.progress.update(self.task, completed=self.done + part * self.rows, speed=speed)

    def finish(self) -> None:
        if self.progress is not None:
            self.progress.update(self.task, completed=self.done + self.rows)
