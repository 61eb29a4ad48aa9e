"""Pictures of a whole text's mask: who sees what of a sentence or a page, on a terminal or as PNG.

A cell is what a token (row) can see of an earlier one (column): text of its own or of an uncompressed past, a pin, a comp token
(or slot), or nothing any more. On a terminal two rows share a line of half blocks; without colours a letter stands for a cell.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from rich.text import Text
from torch import Tensor

from context_memory.atomic import whole
from context_memory.plan import SLOT, Plan
from context_memory.schemes.base import Scheme


class Kind(NamedTuple):
    name: str
    letter: str
    colour: str


KINDS = (
    Kind("later, or nothing", " ", "#ffffff"),
    Kind("forgotten", ".", "#d8d8d8"),
    Kind("text", "#", "#4269d0"),
    Kind("pinned", "P", "#3ca951"),
    Kind("comp token", "C", "#ff725c"),
)
"""In the order of what wins where several cells share one place."""


def cells(plan: Plan, scheme: Scheme) -> Tensor:
    """(n, n) indices into KINDS of the first row of a plan. Slots' own rows are empty: they read nothing."""
    t = plan.tokens
    n = plan.shape[1]
    seen = plan.mask(scheme)[0]
    earlier = torch.ones(n, n, dtype=torch.bool).tril() & (t.kind[0] != SLOT)[:, None]
    what = torch.where(t.raw[0], torch.where(t.pin[0], 3, 2), 4)[None].expand(n, n)
    old_text = (t.segment[0][:, None] == t.segment[0][None]) & t.raw[0][None]
    what = torch.where(old_text, 2, what)  # a pin is ordinary text until its segment closes
    return torch.where(seen & earlier, what, torch.where(earlier, 1, 0))


def fit(grid: Tensor, width: int) -> Tensor:
    """The grid with at most `width` columns; cells that share a place give it their highest kind."""
    n = grid.shape[1]
    if n <= width:
        return grid
    pooled = torch.nn.functional.adaptive_max_pool2d(grid[None, None].float(), (width, width))
    return pooled[0, 0].long()


def letters(grid: Tensor) -> str:
    """A letter a cell."""
    return "\n".join("".join(KINDS[c].letter for c in row).rstrip() for row in grid.tolist())


def blocks(grid: Tensor) -> Text:
    """Two rows a line, in colours."""
    rows = grid.tolist()
    rows += [[0] * len(rows[0])] * (len(rows) % 2)
    out = Text()
    for top, bottom in zip(rows[::2], rows[1::2]):
        for a, b in zip(top, bottom):
            out.append("\N{UPPER HALF BLOCK}", f"{KINDS[a].colour} on {KINDS[b].colour}")
        out.append("\n")
    return out


def legend(coloured: bool) -> Text:
    """What the cells mean."""
    out = Text("a row sees: ")
    for kind in KINDS[1:]:
        mark = "\N{FULL BLOCK}\N{FULL BLOCK}" if coloured else kind.letter
        out.append(mark, kind.colour if coloured else "").append(f" {kind.name}   ")
    return out


def save(grid: Tensor, path: Path, title: str) -> Path:
    """The grid as PNG, a square a cell, whole or not at all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    figure = Figure(figsize=(7, 7.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    colours = ListedColormap([k.colour for k in KINDS])
    axes.imshow(grid.numpy(), cmap=colours, vmin=0, vmax=len(KINDS) - 1, interpolation="nearest")
    axes.set(xlabel="seen token", ylabel="token", title=title)
    handles = [Patch(facecolor=k.colour, edgecolor="#999999", label=k.name) for k in KINDS[1:]]
    axes.legend(handles=handles, loc="upper right", frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as beside:
        figure.savefig(beside, dpi=150, format="png")
    return path
