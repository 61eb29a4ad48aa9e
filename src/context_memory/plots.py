"""Plots of evaluated rows: what a memory keeps against what it weighs, and how far back it forgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from context_memory.atomic import whole
from context_memory.depths import depth_of

if TYPE_CHECKING:
    from context_memory.report import Line

COLOURS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5", "#9c6b4e", "#9498a0")
DPI = 150


def plots(lines: Sequence[Line], folder: Path) -> list[Path]:
    """Those that these rows have the numbers for."""
    out: list[Path] = []
    deep = len({depth_of(line.record.lines[0].id) for line in lines} - {None}) > 1
    if any(line.metrics.peak_reasoning_kv for line in lines):
        out.append(accuracy(lines, folder / "plot.png"))
    elif not deep and sum(_share(line) is not None for line in lines) > 1:
        out.append(likelihood(lines, folder / "plot.png"))
    if any(_distances(line) for line in lines):
        out.append(distances(lines, folder / "distance.png"))
    if deep:
        out.append(depths(lines, folder / "depth.png"))
    return out


def accuracy(lines: Sequence[Line], path: Path) -> Path:
    """Accuracy against the mean peak of reasoning entries, both with 95 % intervals."""
    figure, axes = _figure()
    for i, line in enumerate(lines):
        peak, correct = line.metrics.peak_reasoning_kv, line.metrics.scores.get("correct")
        if peak is None or correct is None:
            continue
        axes.errorbar(
            peak.mean, 100 * correct.mean, xerr=_reach(peak, 1), yerr=_reach(correct, 100), fmt="o", capsize=3,
            color=COLOURS[i % len(COLOURS)], label=line.record.name,
        )  # fmt: skip
    axes.set(xlabel="peak entries a layer for the reasoning, mean over answers", ylabel="accuracy, %", ylim=(-3, 103))
    axes.set_xlim(left=0)
    axes.legend(frameon=False)
    return _save(figure, path)


def likelihood(lines: Sequence[Line], path: Path) -> Path:
    """Nats a token against the share of the uncompressed cache that was held; where no answer was written."""
    figure, axes = _figure()
    for i, line in enumerate(lines):
        share, nll = _share(line), line.metrics.nll
        if share is not None and nll is not None:
            how: Any = {"fmt": "o", "capsize": 3, "color": COLOURS[i % len(COLOURS)], "label": line.record.name}
            axes.errorbar(100 * share, nll.mean, yerr=_reach(nll, 1), **how)
    axes.set(xlabel="entries held, % of those of the text without compression", ylabel="NLL, nats a token")
    axes.set_xlim(left=0)
    axes.legend(frameon=False)
    return _save(figure, path)


def distances(lines: Sequence[Line], path: Path) -> Path:
    """How often a result is taken up d steps later, a line a row."""
    figure, axes = _figure()
    for i, line in enumerate(lines):
        if found := _distances(line):
            reach = [_reach(e, 100) for _, e in found]
            both = [[r[k][0] for r in reach] for k in (0, 1)]
            axes.errorbar(
                [d for d, _ in found], [100 * e.mean for _, e in found], yerr=both, marker="o", capsize=3,
                color=COLOURS[i % len(COLOURS)], label=line.record.name,
            )  # fmt: skip
    axes.set(xlabel="steps between a result and its use", ylabel="taken up rightly, %", ylim=(-3, 103))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False)
    return _save(figure, path)


def depths(lines: Sequence[Line], path: Path) -> Path:
    """What more segments in memory bring, a line a row: accuracy where options were chosen, else the NLL a token."""
    figure, axes = _figure()
    chosen = all("correct" in line.metrics.scores for line in lines)
    rows: dict[str, list[tuple[int, Any]]] = {}
    for line in lines:
        t, found = depth_of(line.record.lines[0].id), line.metrics.scores["correct"] if chosen else line.metrics.nll
        if t is not None and found is not None:
            rows.setdefault(line.record.name.rpartition(", t=")[0], []).append((t, found))
    scale = 100 if chosen else 1
    for i, (name, points) in enumerate(rows.items()):
        reach = [_reach(e, scale) for _, e in points]
        axes.errorbar(
            [t for t, _ in points], [scale * e.mean for _, e in points], yerr=[[r[k][0] for r in reach] for k in (0, 1)], marker="o",
            capsize=3, color=COLOURS[i % len(COLOURS)], label=name,
        )  # fmt: skip
    axes.set(xlabel="segments in memory", ylabel="accuracy, %" if chosen else "NLL, nats a token")
    axes.set_xscale("symlog", base=2, linthresh=1)
    axes.legend(frameon=False)
    return _save(figure, path)


def curve(points: Sequence[Mapping[str, float]], path: Path) -> Path:
    """Precision, recall and F1 of a classifier over its threshold."""
    figure, axes = _figure()
    for name, colour in zip(("precision", "recall", "f1"), COLOURS):
        axes.plot([q["tau"] for q in points], [100 * q[name] for q in points], color=colour, label=name)
    axes.set(xlabel="tau", ylabel="%", ylim=(-3, 103), xlim=(0, 1))
    axes.legend(frameon=False)
    return _save(figure, path)


def perplexities(curves: Mapping[str, Sequence[tuple[int, float]]], title: str, path: Path) -> Path:
    """Perplexity of a text so far over the tokens so far, a line a row."""
    figure, axes = _figure()
    for i, (name, points) in enumerate(curves.items()):
        colour = COLOURS[i % len(COLOURS)]
        axes.plot([n for n, _ in points], [p for _, p in points], marker="." if len(points) < 9 else None, color=colour, label=name)
    axes.set(xlabel="tokens read", ylabel="perplexity so far", title=title)
    axes.legend(frameon=False)
    return _save(figure, path)


def _share(line: Line) -> float | None:
    """Of the context, where there is one; else the peak on the target."""
    m = line.metrics
    if m.nll is None:
        return None
    return m.memory_kv.mean / m.context_tokens if m.memory_kv and m.context_tokens else m.equal_length_ratio


def _distances(line: Line) -> list[tuple[int, Any]]:
    names = [n for n in line.metrics.scores if n.startswith("distance_")]
    return [(int(n.removeprefix("distance_")), line.metrics.scores[n]) for n in names]


def _reach(e: Any, scale: float) -> list[list[float]]:
    """matplotlib's form of an interval; none where it has no bounds."""
    below, above = scale * (e.mean - e.low), scale * (e.high - e.mean)
    return [[max(0.0, below) if below < 1e9 else 0.0], [max(0.0, above) if above < 1e9 else 0.0]]


def _figure() -> tuple[Any, Any]:
    """A figure that belongs to nobody: no global state, no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Any, path: Path) -> Path:
    with whole(path) as beside:
        figure.savefig(beside, dpi=DPI, format="png")
    return path
