"""What a training step is given: micro-batches of like length, in an order that depends on (seed, epoch, index) alone.

Examples are encoded when their turn comes and kept. A micro-batch is a list of rows, a row a list of examples (one, or several
that are packed). The collate function gives O(n) tensors; masks are built from them on the device.

With `training.n_comp` a micro-batch has one number of comp tokens, drawn for it from the set, and not one an example: the slots of a
merging scheme are overwritten in one gather over groups of one size, and so a step is exactly one of a plain scheme of that number.
Which examples go together does not depend on the draw; room is kept for the largest number.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property

from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from context_memory.defaults import TrainingConfig
from context_memory.encode import Encoder
from context_memory.errors import UserError
from context_memory.plan import Plan, Tokens, layout, pack, stack
from context_memory.schemes.base import Scheme
from context_memory.text import Example, Segment

BLOCK = 512
"""Examples among which like lengths are looked for; encoded together."""
Row = list[int]


@dataclass(frozen=True)
class Batch:
    """A micro-batch."""

    rows: list[Row]
    n_comp: int | None = None
    """Comp tokens at each of its boundaries; None: as many as the scheme has."""


@dataclass
class Left:
    """How many examples were left out, and why."""

    too_long: int = 0
    no_label: int = 0


class Rows:
    """Examples as segments, encoded when first asked for."""

    def __init__(
        self, examples: Sequence[Example], encoder: Encoder, scheme: Scheme, positions: str, supervise: str, max_tokens: int,
        segments: Callable[[Example], list[Segment]] | None = None,
    ) -> None:  # fmt: skip
        self._segments = segments or encoder.segments
        self.examples, self.encoder, self.scheme, self.positions = examples, encoder, scheme, positions
        self.supervise, self.max_tokens = supervise, max_tokens
        self.left = Left()
        self._seen: dict[int, tuple[tuple[Segment, ...], int] | None] = {}

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> tuple[tuple[Segment, ...], int] | None:
        """Segments and length (comp tokens and slots included), or None for an example that is left out."""
        if index not in self._seen:
            segments = tuple(self._segments(self.examples[index]))
            fold = self.scheme.slots(self.scheme.delay, self.max_tokens) + self.scheme.n_comp  # of a boundary, at most
            length = sum(len(s.ids) + fold * s.compress for s in segments)
            if length > self.max_tokens:
                self.left.too_long += 1
                self._seen[index] = None
            elif not self._labelled(segments):
                self.left.no_label += 1
                self._seen[index] = None
            else:
                self._seen[index] = (segments, length)
        return self._seen[index]

    def _labelled(self, segments: Sequence[Segment]) -> bool:
        first = next((i + 1 for i, s in enumerate(segments) if s.compress), len(segments)) if self.supervise == "memory" else 0
        flags = [x for s in segments[first:] for x in s.loss or (False,) * len(s.ids)]
        return any(flags[1:])  # the first is predicted from before them

    def plan(self, index: int, n_comp: int | None = None) -> Plan:
        """The example laid out (b = 1), with another number of comp tokens than the scheme's if one is given."""
        found = self[index]
        assert found is not None
        scheme = self.scheme if n_comp is None else replace(self.scheme, n_comp=n_comp)  # type: ignore[type-var]
        try:
            return layout(found[0], scheme, self.positions, supervise=self.supervise)
        except ValueError as e:
            raise UserError(f"example '{self.examples[index].id or index}' does not fit scheme '{self.scheme.name}': {e}") from e

    def stacked(self, batch: Batch) -> Plan:
        """A micro-batch laid out."""
        return _stacked([[self.plan(i, batch.n_comp) for i in row] for row in batch.rows])

    def teacher(self, index: int) -> Plan:
        """The same text with nothing compressed or forgotten, and the same labels in the same order (b = 1)."""
        plan = self.plan(index)
        raw = plan.tokens.raw
        whole = layout([Segment(tuple(plan.ids[raw].tolist()), compress=False, target=True)], self.scheme)
        return replace(whole, labels=plan.labels[raw][None])


class Schedule(TorchDataset[Batch]):
    """Item i is micro-batch i, counted through all epochs."""

    def __init__(self, rows: Rows, training: TrainingConfig, size: int | None = None, shuffle: bool = True) -> None:
        self.rows, self.training, self.shuffle = rows, training, shuffle
        self._made: list[Batch] = []
        self._source = self._epochs()
        self.size = size

    def __len__(self) -> int:
        return self.size if self.size is not None else self.per_epoch

    @cached_property
    def per_epoch(self) -> int:
        """Micro-batches of the first epoch (encodes every example)."""
        return sum(1 for _ in self.epoch(0))

    def about(self) -> int:
        """Micro-batches of an epoch as the first `BLOCK` examples have it (encodes no others)."""
        block = min(BLOCK, len(self.rows))
        return round(sum(1 for _ in self._grouped(0, block)) * len(self.rows) / max(1, block))

    def __getitem__(self, index: int) -> Batch:
        while len(self._made) <= index:
            self._made.append(next(self._source))
        return self._made[index]

    def _epochs(self) -> Iterator[Batch]:
        epoch = 0
        if not len(self.rows):
            self._nothing(0)
        while True:
            yield from self.epoch(epoch)
            epoch += 1

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The micro-batches of one epoch."""
        numbers = sorted(self.training.n_comp or ()) if self.shuffle else []
        for index, rows in enumerate(self._grouped(epoch)):
            draw = random.Random(f"{self.training.seed} {epoch} {index} n_comp")
            yield Batch(rows, draw.choice(numbers) if numbers else None)

    def _grouped(self, epoch: int, most: int | None = None) -> Iterator[list[Row]]:
        """The rows of one micro-batch after the other; of the epoch's first `most` examples."""
        seed = self.training.seed
        order = list(range(len(self.rows)))
        if self.shuffle:
            random.Random(f"{seed} {epoch}").shuffle(order)
        order = order[:most]
        size = BLOCK if self.shuffle else max(len(order), 1)
        for start in range(0, len(order), size):
            usable = [(found[1], i) for i in order[start : start + size] if (found := self.rows[i]) is not None]
            if not usable and not start and self.shuffle:  # an evaluation without examples is none
                self._nothing(min(size, len(order)))
            batches = list(self._packed(usable) if self.training.packing else self._alike(usable))
            if self.shuffle:
                random.Random(f"{seed} {epoch} {start}").shuffle(batches)
            yield from batches

    def _nothing(self, looked: int) -> None:
        left = self.rows.left
        raise UserError(
            f"nothing to train on in {looked} examples at random: {left.too_long} are longer than training.max_tokens="
            f"{self.rows.max_tokens}, and {left.no_label} have no target after their first compression (does boundary "
            f"'{type(self.rows.encoder.boundary).__name__.lower()}' end a segment before the answer does?)."
        )

    def _alike(self, usable: list[tuple[int, int]]) -> Iterator[list[Row]]:
        """Rows of like length, as many as there is room for."""
        t, batch, longest = self.training, list[Row](), 0
        for length, i in sorted(usable):
            longest = max(longest, length)
            full = len(batch) >= t.batch_size if t.batch_size else longest * (len(batch) + 1) > t.tokens_per_batch
            if batch and full:
                yield batch
                batch, longest = [], length
            batch.append([i])
        if batch:
            yield batch

    def _packed(self, usable: list[tuple[int, int]]) -> Iterator[list[Row]]:
        """Examples side by side in rows of `tokens_per_row`, the longest first where they still fit."""
        t = self.training
        bins: list[tuple[int, Row]] = []
        for length, i in sorted(usable, reverse=True):
            at = next((k for k, (used, _) in enumerate(bins) if used + length <= t.tokens_per_row), None)
            if at is None:
                bins.append((length, [i]))
            else:
                bins[at] = (bins[at][0] + length, [*bins[at][1], i])
        room = t.batch_size or max(1, t.tokens_per_batch // t.tokens_per_row)
        rows = [row for _, row in sorted(bins)]
        for start in range(0, len(rows), room):
            yield rows[start : start + room]


_FIELDS = tuple(f.name for f in fields(Tokens))
_PLAIN = ("ids", "slot", "labels", "groups")


@dataclass(frozen=True)
class Collate:
    """A micro-batch of the schedule -> tensors."""

    rows: Rows
    teacher: bool = False

    def __call__(self, items: Sequence[Batch]) -> dict[str, Tensor]:
        (batch,) = items  # a micro-batch is one item of the schedule
        out = to_tensors(self.rows.stacked(batch))
        if self.teacher:
            whole = _stacked([[self.rows.teacher(i) for i in row] for row in batch.rows])
            out |= {f"teacher_{k}": v for k, v in to_tensors(whole).items()}
        return out


def _stacked(rows: Sequence[Sequence[Plan]]) -> Plan:
    return stack([row[0] if len(row) == 1 else pack(row) for row in rows])


def to_tensors(plan: Plan) -> dict[str, Tensor]:
    """A plan as a flat mapping of tensors, as the Trainer moves them about."""
    return {name: getattr(plan.tokens, name) for name in _FIELDS} | {name: getattr(plan, name) for name in _PLAIN}


def to_plan(tensors: dict[str, Tensor], prefix: str = "") -> Plan:
    """The inverse of `to_tensors`."""
    tokens = Tokens(*(tensors[prefix + name] for name in _FIELDS))
    return Plan(tokens, **{name: tensors[prefix + name] for name in _PLAIN})
