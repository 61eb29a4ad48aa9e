"""Tables and plots of evaluated rows: on the terminal, as markdown, as PNG. Every number comes from the rows' predictions.

A row is compared with the `full` row of the same base weights and task adapter, or with one that is named (a fine-tune, the model as it
was published, a window); where there is none, those columns stay empty.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from context_memory.atomic import write_json, write_text
from context_memory.console import markdown_table, terminal
from context_memory.depths import depth_of
from context_memory.intervals import Estimate
from context_memory.metrics import Metrics, Prediction, Versus, natural, plain, summarise, versus
from context_memory.probe import KINDS, faults, recalled
from context_memory.records import METRICS, Record


@dataclass(frozen=True)
class Line:
    """A row of a table: by itself, and against another."""

    record: Record
    metrics: Metrics
    versus: Versus | None
    itself: bool = False
    """It is the row that others are compared with."""
    beside: str = "full"
    """What that row is called in the heads of columns."""
    faults: dict[str, int] = field(default_factory=dict)
    """Wrong answers by the kind of their first fault."""
    recalled: dict[str, Estimate] = field(default_factory=dict)
    """Of the earlier numbers of right and wrong answers, by that kind, what the memory gives back."""


def by_depth(records: Sequence[Record]) -> list[Record]:
    """Rows whose items were asked at several depths, as a row for each; the others as they are."""
    out: list[tuple[int, Record]] = []
    for r in records:
        parts: dict[int | None, list[Prediction]] = {}
        for p in r.lines:
            parts.setdefault(depth_of(p.id), []).append(p)
        out += [(t or 0, r if t is None else replace(r, name=f"{r.name}, t={t}", lines=tuple(lines))) for t, lines in parts.items()]
    return [r for _, r in sorted(out, key=lambda pair: pair[0])]


def join(records: Sequence[Record], against: Sequence[Record] = ()) -> list[Line]:
    """Pair every row with the `full` and `nothing` rows that it can be compared with: of its own model, or the first of `against`,
    whatever its scheme (shares of a gap need a `full` row)."""
    out: list[Line] = []
    named = by_depth(against)
    for r in (records := by_depth(records)):
        keys = {p.key for p in r.lines}
        same = [o for o in records if o.ground == r.ground and keys & {p.key for p in o.lines}]
        asked = {p.asked for p in r.lines}
        same.sort(key=lambda o: asked.isdisjoint(p.asked for p in o.lines))  # after the same contexts first
        other = next((o for o in named or [o for o in same if o.scheme == "full"] if keys & {p.key for p in o.lines}), None)
        ends = other is not None and other.scheme == "full"
        nothing = next((o for o in same if o.scheme == "nothing" and ends), None)
        compared = versus(r.lines, other.lines, nothing.lines if nothing else ()) if other is not None else None
        written = [p for p in r.lines if p.reason != "chosen"]  # an option has no equations to be at fault
        itself = other is not None and other.folder == r.folder
        line = Line(r, summarise(r.lines, r.kv_bytes), compared, itself, faults=faults(written), recalled=recalled(written))
        out.append(line if other is None or ends else replace(line, beside=other.name))
    return out


QUALITY = (
    "row", "n", "accuracy %", "vs full, points", "p", "gap closed, points %", "peak KV", "of full %", "NLL", "vs full, nats",
    "gap closed %", "memory", "memory %",
)  # fmt: skip
COST = ("row", "memory MB", "context", "same text %", "mean KV", "with prompt", "MB", "compressions", "tokens", "cut off %", "tokens/s")
NOTES: dict[tuple[str, ...], str] = {
    ("peak KV", "mean KV"): "mean over answers of the most (mean KV: of the mean) entries a layer, the prompt not counted",
    ("with prompt",): "the same with the prompt",
    ("of full %",): "peak KV over that row's",
    ("gap closed %",): "of the NLL per target token between nothing and full",
    ("gap closed, points %",): "of the accuracy between nothing and full",
    ("memory", "memory %", "memory MB"): "entries a layer (MB: live bytes) held of the context when the question came; %: of its tokens",
    ("same text %",): "peak over that of an uncompressed cache, both on the target",
    ("MB",): "live bytes of keys and values at their largest, prompt and padding included",
    ("compressions", "tokens"): "per answer",
    ("macro_f1",): "mean over classes of F1 (icl: then over tasks), interval by bootstrap over items",
    ("mae",): "mean absolute error, in points",
    ("right",): "of an answer's earlier numbers, what the memory gives back when their line is begun again, mean over the answers",
    ("lost number", "arithmetic"): "wrong answers by their first fault: an operand never given or worked out, sides that do not agree",
}
"""Columns -> what they are; said below a table that has one of them."""


def legend(lines: Sequence[Line]) -> str:
    """What the columns of these tables are."""
    columns = {c for _, names, _ in grids(lines) for c in names}
    depths = ["t: segments of context"] if any(depth_of(line.record.lines[0].id) is not None for line in lines) else []
    several = {p.group for line in lines for p in line.record.lines if p.group}
    grouped = [f"intervals: {len(several)} groups (users, or questions that are asked again), the items of one together"] if several else []
    found = [([c for c in some if c in columns], text) for some, text in NOTES.items()]
    told = [f"{', '.join(heads(some, lines))}: {text}" for some, text in found if some]
    return "; ".join([*told, *depths, *grouped]) + ("." if told or depths or grouped else "")


def cells(line: Line) -> dict[str, str]:
    """The texts of a row by column; empty where nothing was measured or nothing can be compared."""
    m, v = line.metrics, line.versus
    correct, d, e, g = m.scores.get("correct"), *((v.difference, v.nll_difference, v.gap_closed) if v else (None,) * 3)
    a, end = v.accuracy_gap_closed if v else None, line.itself or line.record.scheme == "nothing"
    said = m.tokens > 0
    return {
        "row": line.record.name,
        "n": f"{m.n:,}" if not v or line.itself or v.n == m.n else f"{m.n:,} ({v.n:,} compared)",
        "accuracy %": _interval(correct) if correct else "",
        "vs full, points": f"{100 * d.mean:+.1f} [{100 * d.low:+.1f}, {100 * d.high:+.1f}]" if d and not line.itself else "",
        "p": _p(v.p) if v and v.p is not None and not line.itself else "",
        "peak KV": f"{m.peak_reasoning_kv.mean:.1f}" if m.peak_reasoning_kv else "",
        "of full %": _percent(v.kv_ratio if v else None),
        "NLL": f"{m.nll.mean:.4f} [{m.nll.low:.4f}, {m.nll.high:.4f}]" if m.nll else "",
        "vs full, nats": f"{e.mean:+.4f} [{e.low:+.4f}, {e.high:+.4f}]" if e and not line.itself and line.beside != "full" else "",
        "gap closed, points %": _interval(a, end=end) if a else "",
        "memory": f"{m.memory_kv.mean:.1f}" if m.memory_kv else "",
        "memory %": _percent(m.memory_kv.mean / m.context_tokens) if m.memory_kv and m.context_tokens else "",
        "memory MB": f"{m.memory_bytes / 1e6:.3f}" if m.memory_kv else "",
        "context": f"{m.context_tokens:.1f}" if m.memory_kv else "",
        "gap closed %": _interval(g, end=end) if g else "",
        "same text %": "" if m.memory_kv else _percent(m.equal_length_ratio),  # with a context, it is the memory that counts
        "mean KV": f"{m.mean_reasoning_kv:.1f}" if said else "",
        "with prompt": f"{m.peak_kv:.1f}" if said else "",
        "MB": f"{m.peak_kv_bytes / 1e6:.2f}" if said else "",
        "compressions": f"{m.compressions:.1f}" if said else "",
        "tokens": f"{m.tokens:.0f}" if said else "",
        "cut off %": _percent(m.cut_off) if said else "",
        "tokens/s": f"{m.tokens_per_second:.0f}" if m.tokens_per_second else "",
    }


Grid = tuple[str, list[str], list[dict[str, str]]]
"""Title, columns, and rows by column."""


def grids(lines: Sequence[Line]) -> list[Grid]:
    """What the rows reach, what that costs, and every other score; columns and tables without a number are left out."""
    texts = [cells(line) for line in lines]
    other = [{"row": line.record.name} | {n: _score(n, e) for n, e in line.metrics.scores.items()} for line in lines]
    names = ["row", *sorted({n for o in other for n in o} - {"row", "correct"}, key=natural)]
    found: list[Grid] = [("kept", list(QUALITY), texts), ("cost", list(COST), texts), ("other scores, %", names, other)]
    found.append(("wrong answers: why, %", ["row", "wrong", *map(_words, KINDS)], [_faults(line) for line in lines]))
    found.append(
        ("recall by the answer's fault, % (answers)", ["row", *map(_words, ("right", *KINDS))], [_recalled(line) for line in lines])
    )
    found = [(title, [c for c in columns if any(r.get(c) for r in rows)], rows) for title, columns, rows in found]
    return [g for g in found if len(g[1]) > 1]


def heads(columns: Sequence[str], lines: Sequence[Line]) -> list[str]:
    """The columns as they are headed: after the row that is compared with, where that is not `full`."""
    name = next((line.beside for line in lines if line.versus is not None), "full")
    return [c.replace("vs full", f"vs {name}").replace("of full", f"of {name}") for c in columns]


def tables(lines: Sequence[Line]) -> list[Table]:
    """For the terminal."""
    out = []
    for title, columns, rows in grids(lines):
        t = Table(title=title, title_justify="left")
        for i, head in enumerate(heads(columns, lines)):
            t.add_column(head, justify="right" if i else "left", no_wrap=True)
        for row in rows:
            t.add_row(*(row.get(c, "") for c in columns))
        out.append(t)
    return out


def markdown(lines: Sequence[Line]) -> str:
    """The same for a file, with the commands that made it."""
    found = [(heads(columns, lines), [[row.get(c, "") for c in columns] for row in rows]) for _, columns, rows in grids(lines)]
    text = "\n".join(markdown_table(columns, rows) for columns, rows in found)
    runs = [line.record.run for line in lines]
    commands = list(dict.fromkeys(f"`{r['command']}` (commit {r.get('commit')})" for r in runs))
    return f"{text}\n{legend(lines)}\n\n" + "\n".join(commands) + "\n"


def publish(records: Sequence[Record], folder: Path, against: Sequence[Record] = ()) -> list[Line]:
    """Print the tables; write them, the plots, and the comparison with `full` into the `metrics.json` of each row under `folder`
    (rows that a table merely quotes stay as they are)."""
    from context_memory.plots import plots

    lines = join(records, against)
    folder.mkdir(parents=True, exist_ok=True)
    console = terminal()
    for t in tables(lines):
        console.print(t)
    console.print(legend(lines), style="dim", highlight=False)
    write_text(folder / "table.md", markdown(lines))
    for line in lines:
        if folder in line.record.folder.parents:
            own = line.record.folder / METRICS
            write_json(own, {**json.loads(own.read_text()), "versus_full": plain(line.versus) if line.versus else None})
    write_json(folder / "table.json", [_summary(line) for line in lines])
    written = [folder / "table.md", folder / "table.json", *plots(lines, folder)]
    console.print("written: " + ", ".join(map(str, written)), soft_wrap=True, highlight=False)
    return lines


def _summary(line: Line) -> dict[str, Any]:
    r, against = line.record, plain(line.versus) if line.versus else None
    facts = {"name": r.name, "scheme": r.settings["scheme"], "command": r.run["command"], "commit": r.run.get("commit")}
    return {
        **facts,
        "metrics": plain(line.metrics),
        "versus_full": against,
        "wrong": line.faults,
        "recalled": {k: plain(e) for k, e in line.recalled.items()},
    }


def _interval(e: Estimate, end: bool = False) -> str:
    """A share in percent; an end of the table's scale has no interval."""
    return f"{100 * e.mean:.1f}" if end else f"{100 * e.mean:.1f} [{100 * e.low:.1f}, {100 * e.high:.1f}]"


def _faults(line: Line) -> dict[str, str]:
    """Shares of the wrong answers."""
    wrong = sum(line.faults.values())
    shares = {_words(kind): f"{100 * n / wrong:.1f}" for kind, n in line.faults.items()}
    return {"row": line.record.name, **({"wrong": str(wrong)} if wrong else {}), **shares}


def _recalled(line: Line) -> dict[str, str]:
    return {"row": line.record.name, **{_words(kind): f"{_interval(e, end=e.n < 2)} ({e.n})" for kind, e in line.recalled.items()}}


def _words(kind: str) -> str:
    return kind.replace("_", " ")


def _score(name: str, e: Estimate) -> str:
    """`mae` is in points of its scale; what some data are judged by has its interval beside it."""
    if name == "mae":
        return f"{e.mean:.3f} [{e.low:.3f}, {e.high:.3f}]"
    return _interval(e) if name in ("macro_f1", "rouge_l") else f"{100 * e.mean:.1f}"


def _percent(x: float | None) -> str:
    return "" if x is None else f"{100 * x:.1f}"


def _p(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.3f}"
