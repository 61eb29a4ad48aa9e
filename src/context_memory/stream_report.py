"""Tables and plots of streams: perplexity, what the cache held, and whether a token late in a text costs what an early one did."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.table import Table

from context_memory import intervals
from context_memory.atomic import write_json, write_text
from context_memory.console import markdown_table, terminal
from context_memory.metrics import plain
from context_memory.plots import perplexities
from context_memory.records import facts_of_this_run
from context_memory.rows import slug
from context_memory.streaming import FULL, WINDOW, Result, Span

COLUMNS = (
    "text", "row", "tokens", "perplexity", "nats vs window", "its first", "perplexity there", "entries", "peak", "MB", "tokens/s", "pace",
)  # fmt: skip
LEGEND = (
    "nats vs window: negative log-likelihood per token less that of the row window, paired by spans of the text, 95 % interval; its "
    "first, perplexity there: the part that the row full has read too; entries, peak: keys a layer that a token attended to, mean, and "
    "the most that was held, comp tokens included (window is never given fewer than the row that compresses); MB: live bytes of keys, "
    "values and averages at their largest; pace: time per token in the second half of the text over that in the first."
)


def perplexity(spans: Sequence[Span]) -> float:
    """Of the tokens of these spans together."""
    return math.exp(sum(s.nats for s in spans) / sum(s.predicted for s in spans))


def running(spans: Sequence[Span]) -> list[tuple[int, float]]:
    """Tokens so far, and their perplexity, after every span."""
    ends = range(1, len(spans) + 1)
    return [(sum(s.predicted for s in spans[:i]), perplexity(spans[:i])) for i in ends]


def against(spans: Sequence[Span], window: Sequence[Span]) -> intervals.Estimate:
    """Nats per token more (or fewer) than the window's on the same spans."""
    pairs = list(zip(spans, window, strict=True))
    return intervals.ratio([a.nats - b.nats for a, b in pairs], [b.predicted for _, b in pairs])


def summary(results: Sequence[Result]) -> list[dict[str, Any]]:
    """A line for every text and row; where there are several texts, one for all of them together as well."""
    texts = list(dict.fromkeys(r.text for r in results))
    groups = [(t, [r for r in results if r.text == t]) for t in texts]
    if len(texts) > 1:
        groups.append(("all", [_joined([r for r in results if r.row == name]) for name in dict.fromkeys(r.row for r in results)]))
    # `full` reads the head of every text; to compare with it, the other rows are cut there text by text.
    heads = {t: next((len(r.spans) for r in g if r.row == FULL), 0) for t, g in groups}
    out = []
    for text, group in groups:
        window = next(r for r in group if r.row == WINDOW)
        for r in group:
            own = [x for x in results if x.row == r.row and text in (x.text, "all")]
            head = [s for x in own for s in x.spans[: heads[x.text]]]
            out.append(_line(text, r, head, None if r.row in (WINDOW, FULL) else against(r.spans, window.spans)))
    return out


def _joined(of: Sequence[Result]) -> Result:
    tokens = [r.settings["tokens"] for r in of]
    return replace(
        of[0], text="all", spans=tuple(s for r in of for s in r.spans), settings={"tokens": sum(tokens)},
        entries=sum(r.entries * n for r, n in zip(of, tokens)) / sum(tokens),
        peak_entries=max(r.peak_entries for r in of), peak_bytes=max(r.peak_bytes for r in of),
    )  # fmt: skip


def _line(text: str, r: Result, head: Sequence[Span], versus: intervals.Estimate | None) -> dict[str, Any]:
    seconds, half = [s.seconds for s in r.spans], len(r.spans) // 2
    shares = [sum(seconds[i:j]) / sum(s.predicted for s in r.spans[i:j]) for i, j in ((0, half), (half, None))] if half else None
    return {
        "text": text, "row": r.row, "tokens": r.settings["tokens"], "perplexity": perplexity(r.spans),
        "versus_window": None if versus is None else plain(versus),
        "head_tokens": sum(s.predicted for s in head), "head_perplexity": perplexity(head) if head else None,
        "entries": r.entries, "peak_entries": r.peak_entries, "peak_bytes": r.peak_bytes,
        "tokens_per_second": r.settings["tokens"] / sum(seconds), "pace": shares[1] / shares[0] if shares and text != "all" else None,
    }  # fmt: skip


def cells(line: dict[str, Any]) -> list[str]:
    """The texts of a line, in the order of `COLUMNS`."""
    v = line["versus_window"]
    return [
        line["text"], line["row"], f"{line['tokens']:,}", f"{line['perplexity']:.3f}",
        "" if v is None else _interval(v),
        f"{line['head_tokens']:,}" if line["head_tokens"] else "", f"{line['head_perplexity']:.3f}" if line["head_perplexity"] else "",
        f"{line['entries']:.1f}", f"{line['peak_entries']}", f"{line['peak_bytes'] / 1e6:.2f}", f"{line['tokens_per_second']:.0f}",
        "" if line["pace"] is None else f"{line['pace']:.2f}",
    ]  # fmt: skip


def _interval(v: dict[str, Any]) -> str:
    """One span has no interval."""
    return f"{v['mean']:+.4f}" + ("" if v["low"] is None else f" [{v['low']:+.4f}, {v['high']:+.4f}]")


def publish(results: Sequence[Result], folder: Path) -> None:
    """Print the table; write it, its numbers and a plot of every text."""
    lines, console = summary(results), terminal()
    table = Table(title="streams", title_justify="left")
    for i, column in enumerate(COLUMNS):
        table.add_column(column, justify="left" if i < 2 else "right", no_wrap=True)
    for line in lines:
        table.add_row(*cells(line))
    console.print(table)
    console.print(LEGEND, style="dim", highlight=False)
    facts = facts_of_this_run()
    text = markdown_table(COLUMNS, [cells(line) for line in lines])
    write_text(folder / "table.md", f"{text}\n{LEGEND}\n\n`{facts['command']}` (commit {facts['commit']})\n")
    write_json(folder / "streams.json", {"run": facts, "rows": lines})
    written = [folder / "table.md", folder / "streams.json"]
    for name in dict.fromkeys(r.text for r in results):
        curves = {r.row: running(r.spans) for r in results if r.text == name}
        written.append(perplexities(curves, name, folder / f"{slug(name)}.png"))
    console.print("written: " + ", ".join(map(str, written)), soft_wrap=True, highlight=False)
