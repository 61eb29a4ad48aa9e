"""Perplexity along texts of any length: streams with a memory, as many entries without one, and the full context where it fits.

<row>/<text>.json      the spans of one row and text, written whole; what is there with the same settings is not run again
streams.json, table.md what they come to; <text>.png: perplexity of the text so far, over the position
"""

from __future__ import annotations

import gc
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.progress import Progress

from context_memory import plugins, rows
from context_memory.atomic import write_json
from context_memory.config import Config
from context_memory.encode import Encoder
from context_memory.errors import UserError
from context_memory.model import CompressedLM
from context_memory.records import facts_of_this_run
from context_memory.schemes.base import Scheme
from context_memory.stream import Settings, SlidingWindow, Stream

WINDOW, FULL = "window", "full"


@dataclass(frozen=True)
class Span:
    """A stretch of text as a stream read it."""

    predicted: int
    nats: float
    """Sum of the negative log-likelihoods."""
    seconds: float


@dataclass(frozen=True)
class Result:
    """One row on one text."""

    row: str
    text: str
    spans: tuple[Span, ...]
    entries: float
    """What a token attended to, itself included, mean over tokens."""
    peak_entries: int
    peak_bytes: int
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Options:
    """What is measured."""

    tokens: int | None = None
    """Of every text; None for all."""
    full_tokens: int = 4096
    """Of every text, for the row `full`; 0 for no such row."""
    every: int = 1000
    """Tokens of a span."""

    def __post_init__(self) -> None:
        for name, least in (("tokens", 2), ("full_tokens", 0), ("every", 2)):
            if (value := getattr(self, name)) is not None and value < least:
                raise UserError(f"{name.replace('_', '-')} must be at least {least}, got {value}.")
        if 0 < self.full_tokens < self.every:
            raise UserError(f"full-tokens must be 0 or at least every={self.every}, a whole span; got {self.full_tokens}.")


def ids_of(tokenizer: Any, text: str, most: int | None = None) -> list[int]:
    """Token ids of a text, behind BOS where the tokenizer has one."""
    encoder = Encoder(tokenizer, plugins.make("boundaries", "newline"), chat=False)  # type: ignore[arg-type]
    return encoder.ids(encoder.roles.head + text)[:most]


def run(
    config: Config, texts: Mapping[str, str], settings: Settings, options: Options, folder: Path, *, fresh: bool = False,
    progress: Progress | None = None,
) -> list[Result]:  # fmt: skip
    """Every row on every text: the scheme of the configuration (unless it is `full`), the window, `full`. Rows that have no
    memory run the model that the adapter was trained on.

    Raises:
        UserError: a scheme without comp tokens; a text of fewer than two tokens; another run in the folder; see also `Stream` and
            `rows.load_row`.
    """
    out: list[Result] = []
    scheme: Scheme = config.make("scheme")
    if (compresses := scheme.hides) and not scheme.n_comp:
        raise UserError(f"scheme '{scheme.name}' has no comp tokens; a stream needs concat or merge (its window alone is a row anyway).")
    if settings.slots is not None and not compresses:
        raise UserError(f"slots={settings.slots} are of a memory, and no row here has one; give --adapter FOLDER, or leave --slots out.")
    plain = replace(config, scheme={"name": FULL, "n_comp": 0}, pins={})
    for names, c in (((scheme.name,), config), ((WINDOW, FULL), plain)) if compresses else (((WINDOW, FULL), plain),):
        lm = rows.load_row(c)
        for name in names:
            for title, text in texts.items():
                ids = ids_of(lm.tokenizer, text, options.tokens)
                if len(ids) < 2:
                    raise UserError(f"text '{title}' has {len(ids)} token(s) and nothing to predict; give a longer one.")
                if name == FULL:
                    ids = ids[: _fitting(len(ids), options, lm.max_positions)]
                if ids:
                    place = folder / rows.slug(name) / f"{rows.slug(title)}.json"
                    stream = _stream(name, lm, settings, scheme if compresses else None, len(ids))
                    out.append(_measure(stream, name, title, ids, options.every, place, fresh, progress))
        del lm
        gc.collect()  # a model holds itself through its hooks
    return out


def _stream(name: str, lm: CompressedLM, settings: Settings, scheme: Scheme | None, tokens: int) -> Stream:
    if name == WINDOW:
        return SlidingWindow(lm, settings, scheme)
    return SlidingWindow(lm, Settings(tokens, tokens, sink=0)) if name == FULL else Stream(lm, settings)


def _fitting(n: int, options: Options, limit: int) -> int:
    """How many tokens `full` reads: all, or as many whole spans as fit."""
    most = min(options.full_tokens, limit)
    return n if n <= most else most // options.every * options.every


def _measure(
    stream: Stream, row: str, title: str, ids: Sequence[int], every: int, place: Path, fresh: bool, progress: Progress | None
) -> Result:
    said = json.loads(json.dumps(_settings(stream, ids, every)))
    if place.is_file() and not fresh:
        return _known(place, said)
    place.parent.mkdir(parents=True, exist_ok=True)
    spans: list[Span] = []
    task = progress.add_task(f"{row}: {title}", total=len(ids), speed="") if progress else None
    for at in range(0, len(ids), every):
        start, part = time.perf_counter(), ids[at : at + every]
        nll = stream.feed(part).double()
        spans.append(Span(len(nll), float(nll.sum()), time.perf_counter() - start))
        if progress and task is not None:
            spent = sum(s.seconds for s in spans)
            progress.update(task, advance=len(part), speed=f"{stream.seen / spent:.0f} tokens/s, {stream.entries} entries")
    result = Result(row, title, tuple(spans), stream.looked_at / stream.seen, stream.peak_entries, stream.peak_bytes, said)
    write_json(place, {**asdict(result), "run": facts_of_this_run()})
    return result


def _settings(stream: Stream, ids: Sequence[int], every: int) -> dict[str, Any]:
    """All that the spans depend on."""
    lm = stream.lm
    beside = stream.beside if isinstance(stream, SlidingWindow) else None
    return {
        "model": asdict(lm.facts) if lm.facts else None,
        "dtype": str(lm.base.dtype),
        "task": lm.task[1] if lm.task else None,
        "adapter": dict(lm.card.files) if lm.card and lm.peft is not None else None,
        "scheme": f"{lm.scheme!r} positions={lm.positions}",
        "stream": {k: v for k, v in asdict(stream.settings).items() if (k, v) != ("cache", None)},  # unsaid, it changes nothing
        "beside": repr(beside) if beside else None,
        "ids": hashlib.sha256(json.dumps(list(ids)).encode()).hexdigest(),
        "tokens": len(ids),
        "every": every,
    }


def _known(place: Path, said: Mapping[str, Any]) -> Result:
    """What an earlier run has left.

    Raises:
        UserError: it is damaged, or was made with other settings.
    """
    try:
        found = json.loads(place.read_text())
        result = Result(**{k: v for k, v in found.items() if k not in ("run", "spans")}, spans=tuple(Span(**s) for s in found["spans"]))
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise UserError(f"'{place}' is damaged ({e}); say --fresh to measure it again.") from e
    if changed := [k for k in said if said[k] != result.settings.get(k)]:
        k = changed[0]
        raise UserError(
            f"'{place}' was measured with {k} = {result.settings.get(k)}, got {said[k]}; choose another --run_id, or say --fresh to "
            "measure it again."
        )
    return result
