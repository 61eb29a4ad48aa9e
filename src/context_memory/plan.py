"""Where every token sits, and what can be read off that: masks and gate. The only file that knows token order.

A plan is made from segments without a model or a device. Training runs it in one masked pass; a memory runs the plan of
one segment at a time after the tokens that it kept. Both read who sees whom off the same lines (`visible`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from context_memory.errors import InputError
from context_memory.text import Segment

if TYPE_CHECKING:
    from context_memory.schemes.base import Scheme

RAW, COMP, SLOT, PAD = range(4)
"""Kinds of token: text, comp token, memory slot (holds the mix of comp keys and values), padding."""
IGNORE = -100
POSITIONS = ("skip", "base")


@dataclass(frozen=True)
class Tokens:
    """What a scheme may look at to say who sees whom. Integer (or bool) tensors that broadcast against each other."""

    kind: Tensor
    """RAW, COMP, SLOT or PAD."""
    segment: Tensor
    """How many compressions came before this token."""
    reads: Tensor
    """Bool: reads the memory in every scheme; false for a context segment and for comp tokens, which only some schemes let read."""
    pin: Tensor
    """Bool: stays verbatim, seen by every later token."""
    position: Tensor
    """Rotary position."""
    index: Tensor
    """Order of computation; -1 for what a memory holds."""
    row: Tensor
    """Which packed example; 0 where nothing is packed."""

    def map(self, fn) -> Tokens:  # type: ignore[no-untyped-def]
        return Tokens(*(fn(getattr(self, f.name)) for f in fields(self)))

    @property
    def raw(self) -> Tensor:
        return self.kind == RAW

    @property
    def comp(self) -> Tensor:
        return self.kind == COMP

    @property
    def slot(self) -> Tensor:
        return self.kind == SLOT


def visible(scheme: Scheme, q: Tokens, k: Tokens) -> Tensor:
    """Whether query tokens see key tokens, whatever the shape; the one place where this is decided.

    Earlier tokens of the same example that the scheme lets see, and pins. The outputs of slots and padding are never
    used: they see everything, so that no row of the mask is empty.
    """
    earlier = (k.index <= q.index) & (k.row == q.row) & (k.kind != PAD)
    pinned = k.pin & (k.segment <= q.segment)  # comp tokens that are run late (`Scheme.lag`) see no later segment's
    return (earlier & (pinned | scheme.sees(q, k))) | (q.kind >= SLOT)


@dataclass(frozen=True)
class Plan:
    """A batch of token sequences, laid out. All tensors are (b, n) unless noted."""

    tokens: Tokens
    ids: Tensor
    """Token ids; 0 where the token is not text."""
    slot: Tensor
    """Which of the `n_comp` comp tokens or slots of its boundary this is; 0 elsewhere."""
    labels: Tensor
    """The id to be predicted *from* this position, `IGNORE` for none. Never set on comp tokens, slots or padding."""
    groups: Tensor
    """(b, G, 4): column of a group's first comp token, of its first slot (-1: no slots), its segment, its row; -1 for none."""

    @property
    def shape(self) -> tuple[int, int]:
        return self.ids.shape[0], self.ids.shape[1]

    @property
    def real(self) -> int:
        """Raw tokens, padding and comp tokens not counted."""
        return int(self.tokens.raw.sum())

    def to(self, device: torch.device | str) -> Plan:
        rest = {f.name: getattr(self, f.name).to(device) for f in fields(self) if f.name != "tokens"}
        return Plan(tokens=self.tokens.map(lambda x: x.to(device)), **rest)

    @property
    def consecutive(self) -> bool:
        """Whether every row is raw tokens at 0, 1, 2, ... with nothing but padding behind: plain causal attention may be exact."""
        t = self.tokens
        text = (t.position == torch.arange(self.shape[1], device=t.position.device)) & t.raw & (t.row == 0)
        return bool((text | (t.kind == PAD)).all()) and bool(t.raw[:, 0].all())

    def cut(self, at: int) -> tuple[Plan, Plan]:
        """The columns before `at` and those from there on. `groups` stay out: their columns are those of the whole."""

        def part(where: slice) -> Plan:
            tokens = self.tokens.map(lambda x: x[:, where])
            return Plan(tokens, self.ids[:, where], self.slot[:, where], self.labels[:, where], self.groups[:, :0])

        return part(slice(at)), part(slice(at, None))

    def mask(self, scheme: Scheme) -> Tensor:
        """(b, n, n) bool, true where the row may attend to the column."""
        return visible(scheme, self.tokens.map(lambda x: x[:, :, None]), self.tokens.map(lambda x: x[:, None, :]))

    def hides(self, scheme: Scheme) -> bool:
        """Whether any raw token is hidden from a later raw token of its own example."""
        t = self.tokens
        q, k = t.map(lambda x: x[:, :, None]), t.map(lambda x: x[:, None, :])
        causal = (k.index <= q.index) & (k.row == q.row) & q.raw & k.raw
        return bool((causal & ~visible(scheme, q, k)).any())

    def gate(self) -> Tensor:
        """(g,) flat indices (into b * n) of the comp tokens: where a conditional LoRA acts."""
        return self.tokens.comp.flatten().nonzero()[:, 0]


def layout(
    segments: Sequence[Segment], scheme: Scheme, positions: str = "skip", *, clock: int = 0, step: int = 0, unfolded: int = 0,
    supervise: str = "all",
) -> Plan:  # fmt: skip
    """Lay out one example (b = 1): the segments, each followed by its comp tokens (and slots) if it is compressed.

    Args:
        positions: `skip`, comp token j stands at (last raw position) + 1 + j and takes up no room (Kim et al. 2024,
            section 1.3 of docs/papers.md), or `base`, every token counts. Slots never count.
        clock: position of the first token. step: compressions that came before (a memory is continued).
        unfolded: tokens, pins not counted, that the memory holds of the segment that goes on.
        supervise: `all` labels every token with `loss`; `memory` only those after the first compression, because the
            others reach no trainable parameter of a conditional adapter.

    Raises:
        ValueError: unknown `positions`; no tokens at all; the scheme allows fewer compressions than there are.
    """
    if positions not in POSITIONS:
        raise InputError(f"positions must be one of {', '.join(POSITIONS)}, got {positions!r}.")
    columns: list[Column] = []
    groups: list[tuple[int, int, int, int]] = []
    raw: list[tuple[int, bool, int]] = []  # column, loss, segment
    first = step
    for segment in scheme.arrange(segments):
        context = segment.compress and not segment.target
        for i, token in enumerate(segment.ids):
            raw.append((len(columns), bool(segment.loss and segment.loss[i]), step))
            pin = bool(segment.pins and segment.pins[i])
            columns.append((RAW, step, not context, pin, clock, token, 0))
            clock, unfolded = clock + 1, unfolded + (not pin)
        if not segment.compress:
            continue
        if (limit := scheme.max_steps) is not None and step >= limit:
            raise InputError(
                f"scheme '{scheme.name}' compresses at most {limit} time(s) and here comes one more boundary; "
                "write the whole context as one segment, or use another scheme."
            )
        start, n = len(columns), scheme.n_comp
        columns += boundary_columns(scheme, step, clock, unfolded)
        if n:
            groups.append((start, start + n if len(columns) > start + n else -1, step, 0))
        clock += n if positions == "base" else 0
        step, unfolded = step + 1, 0
    if not columns:
        raise InputError("nothing to lay out: every segment is empty; give at least one token.")
    plan = build([columns])
    for (here, _, s), (there, loss, _) in pairwise(raw):
        if loss and (supervise == "all" or s > first):
            plan.labels[0, here] = plan.ids[0, there]
    return replace(plan, groups=torch.tensor(groups, dtype=torch.long).reshape(1, -1, 4))


Column = tuple[int, int, bool, bool, int, int, int]
"""kind, segment, reads, pin, position, id, slot"""


def boundary_columns(scheme: Scheme, step: int, clock: int, unfolded: int) -> list[Column]:
    """What stands at a boundary: the comp tokens, then the slots of a mixing scheme, at the positions that follow the text.

    `unfolded`: tokens of the segment that has ended, pins not counted.
    """
    comp: list[Column] = [(COMP, step, False, False, clock + j, 0, j) for j in range(scheme.n_comp)]
    return comp + [(SLOT, step, False, False, clock + j, 0, j) for j in range(scheme.slots(step, unfolded))]


def build(rows: Sequence[Sequence[Column]]) -> Plan:
    """Columns row by row -> a plan without labels and groups, padded on the right."""
    b, n = len(rows), max(len(r) for r in rows)
    blank: Column = (PAD, 0, False, False, 0, 0, 0)
    table = torch.tensor([[*r, *[blank] * (n - len(r))] for r in rows], dtype=torch.long).reshape(b, n, len(blank)).permute(2, 0, 1)
    kind, segment, reads, pin, position, ids, slot = table.unbind()
    tokens = Tokens(kind, segment, reads.bool(), pin.bool(), position, torch.arange(n).expand(b, n), -(kind == PAD).long())
    return Plan(tokens, ids, slot, torch.full((b, n), IGNORE), torch.full((b, 0, 4), -1))


def stack(plans: Sequence[Plan], to: int | None = None) -> Plan:
    """Rows of a batch, padded on the right to the longest (or to `to` columns)."""
    n = max(to or 0, *(p.shape[1] for p in plans))
    g = max(p.groups.shape[1] for p in plans)

    def pad(plan: Plan) -> Plan:
        b, have = plan.shape
        blank = build([[(PAD, 0, False, False, 0, 0, 0)] * (n - have)] * b)
        tokens = Tokens(*(torch.cat([getattr(plan.tokens, f.name), getattr(blank.tokens, f.name)], 1) for f in fields(Tokens)))
        groups = torch.cat([plan.groups, torch.full((b, g - plan.groups.shape[1], 4), -1)], 1)
        wide = {name: torch.cat([getattr(plan, name), getattr(blank, name)], 1) for name in ("ids", "slot", "labels")}
        return Plan(tokens, groups=groups, **wide)

    rows = [pad(p) for p in plans]
    tokens = Tokens(*(torch.cat([getattr(p.tokens, f.name) for p in rows]) for f in fields(Tokens)))
    return Plan(tokens, **{name: torch.cat([getattr(p, name) for p in rows]) for name in ("ids", "slot", "labels", "groups")})


def pack(plans: Sequence[Plan]) -> Plan:
    """Several examples side by side in one row; none sees another. Takes and gives plans with b = 1."""
    shifted, offset = [], 0
    for row, plan in enumerate(plans):
        n = plan.shape[1]
        tokens = replace(plan.tokens, index=torch.arange(offset, offset + n)[None], row=plan.tokens.row * 0 + row)
        groups = plan.groups.clone()
        groups[..., :2] += torch.where(groups[..., :2] >= 0, offset, 0)
        groups[..., 3] = row
        shifted.append(replace(plan, tokens=tokens, groups=groups))
        offset += n
    tokens = Tokens(*(torch.cat([getattr(p.tokens, f.name) for p in shifted], 1) for f in fields(Tokens)))
    return Plan(tokens, **{name: torch.cat([getattr(p, name) for p in shifted], 1) for name in ("ids", "slot", "labels", "groups")})
