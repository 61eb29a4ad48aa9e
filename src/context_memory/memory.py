"""Memory: the pinned and folded keys and values of every layer, with its own clock. A transformers `Cache` that folds.

Tokens run after what the memory holds (`advance`) under the same rule as in one pass (`plan.visible`); at a boundary
(`fold`) every entry that no later token can see is freed and its storage given back.

Seam: transformers 5.23, `Cache.update` and `get_mask_sizes`, called by every attention layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from context_memory import memory_columns, memory_merge
from context_memory.errors import InputError
from context_memory.plan import PAD, Plan, Tokens, build, layout, stack
from context_memory.text import Segment, runs

if TYPE_CHECKING:
    from context_memory.model import CompressedLM

CLOCKS = ("length", "step", "clock", "raw")


def segment_of(lm: CompressedLM, text: str | Sequence[int], first: bool) -> Segment:
    """Context that is written by hand: text, of which the pin rules keep what they keep, or token ids as they are.

    Raises:
        ValueError: there is nothing in it.
    """
    if not text:
        raise InputError("the segment is empty: there is nothing to remember. Write some text.")
    return lm.encoder.context(text, first) if isinstance(text, str) else Segment(tuple(text))


class Memory(Cache):
    """The memory of one text, or of a batch of texts side by side, each with its own length, step and position.

    Buffers are (rows, kv heads, columns, head size); unused columns of shorter rows are of kind PAD and count in `nbytes`.
    """

    def __init__(self, lm: CompressedLM, rows: int = 1) -> None:
        if rows < 1:
            raise InputError(f"a memory has at least one row, got {rows}.")
        super().__init__(layers=[DynamicLayer() for _ in range(lm.n_layers)])
        self.lm = lm
        self.rows = rows
        self.length = [0] * rows
        """Entries a layer held now, row by row."""
        self.step = [0] * rows
        """Compressions so far."""
        self.clock = [0] * rows
        """Position of the next token."""
        self.raw = [0] * rows
        """Raw tokens seen so far."""
        empty = build([[(PAD, 0, False, False, 0, 0, 0)] * 0] * rows)
        self.held: Tokens = empty.tokens.map(lambda x: x.to(lm.device))
        self.slot = empty.slot.to(lm.device)
        self.mean: list[tuple[Tensor, Tensor]] = []
        self._place: slice | tuple[Tensor, Tensor, Tensor] = slice(0, 0)
        """Where fresh entries go: these columns of every row, or (row, lane) -> column of each."""
        self._used = 0

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write fresh (rows, h, q, d), or (1, h, N, d) if real tokens run side by side; return all (rows, h, used columns, d)."""
        layer = self.layers[layer_idx]
        width = self.slot.shape[1]
        if layer.keys is None:
            b, h, d = self.rows, key_states.shape[1], key_states.shape[3]
            layer.keys, layer.values = key_states.new_zeros(b, h, width, d), value_states.new_zeros(b, h, width, value_states.shape[-1])
            layer.is_initialized = True
        elif layer.keys.shape[2] != width:
            grow = (0, 0, 0, width - layer.keys.shape[2])
            layer.keys, layer.values = pad(layer.keys, grow), pad(layer.values, grow)
        for buffer, fresh in ((layer.keys, key_states), (layer.values, value_states)):
            if isinstance(self._place, slice):
                buffer[:, :, self._place] = fresh
            else:
                rows, lanes, columns = self._place
                real = fresh.transpose(1, 2)
                buffer[rows, :, columns] = real[0] if len(fresh) < self.rows else real[rows, lanes]
        return layer.keys[:, :, : self._used], layer.values[:, :, : self._used]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Used columns (of the longest row) before the tokens that are being run."""
        return max(self.length)

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self._used, 0

    def seen(self, used: int) -> Tokens:
        """The first columns as those who attend to them find them."""
        return self.held.map(lambda x: x[:, :used])

    def advance(self, plan: Plan, clock: Sequence[int], slack: int = 0, slide: bool = False) -> Tensor:
        """Run the plan's tokens after what is held and hold them too; (rows, n, hidden) last hidden states.

        `clock` is the position after the plan, row by row. Lanes of a row are padded on the right. With `slide`, a row that is fed one
        token holds it in the place of one that the scheme's window has left behind.

        Raises:
            ValueError: a position beyond the model's; another number of rows.
        """
        if plan.shape[0] != self.rows:
            raise InputError(f"the memory has {self.rows} row(s), got {plan.shape[0]}; make one with lm.memory(rows={plan.shape[0]}).")
        if (last := max(clock)) > (limit := self.lm.max_positions):
            raise InputError(
                f"position {last} is past the model's {limit}: the clock of a memory counts every token it ever read. "
                "Start a new memory, or use a model with more positions."
            )
        plan = plan.to(self.lm.device)
        real = plan.tokens.kind != PAD
        n = plan.shape[1]
        fresh, first = self._columns(plan, real, slide)
        after = [max(have, at + some) for have, at, some in zip(self.length, first, fresh)]
        self._used = used = max(after)
        if self.slot.shape[1] < used:
            memory_columns.resize(self, used + slack)
        if len(set(first)) == 1 and set(fresh) == {n}:
            self._place = slice(first[0], first[0] + n)
            at: Any = (slice(None), self._place)
            source: Any = (slice(None), slice(None))
        else:
            rows, lanes = real.nonzero(as_tuple=True)
            columns = torch.tensor(first, device=real.device)[rows] + lanes
            self._place = (rows, lanes, columns)
            at, source = (rows, columns), (rows, lanes)
        memory_columns.note(self, at, plan, source)
        try:
            hidden = self.lm.hidden(plan, self, used)
        except BaseException:  # an interruption too: whoever catches it goes on with the memory as it was
            memory_columns.note(self, at, None)
            raise
        self.held.index[:, :used] = -1
        self.length = after
        self.raw = [a + b for a, b in zip(self.raw, plan.tokens.raw.sum(1).tolist())]
        self.clock = list(clock)
        return hidden

    def _columns(self, plan: Plan, real: Tensor, slide: bool) -> tuple[list[int], list[int]]:
        """Row by row, how many fresh tokens there are and the column of the first."""
        if not (slide and self.lm.scheme.slides):
            return (real.sum(1).tolist() if self.rows > 1 else [real.shape[1]]), self.length
        step = torch.tensor(self.step, device=real.device)[:, None]
        behind = self.lm.scheme.left_behind(self.held, step, plan.tokens.position[:, :1])
        alone = real.sum(1) == 1
        place = torch.where(alone & behind.any(1), behind.int().argmax(1), torch.tensor(self.length, device=real.device))
        fresh, first = torch.stack([real.sum(1), place]).tolist()
        return fresh, first

    def fold(self, rows: Sequence[int], exact: bool = True) -> None:
        """Close the segment of these rows: fold its comp keys and values in, free whatever no later token can see."""
        scheme = self.lm.scheme
        if not rows:
            return
        which = torch.tensor(list(rows), device=self.slot.device)
        step, clock = (torch.tensor([x[r] for r in rows], device=self.slot.device)[:, None] for x in (self.step, self.clock))
        if scheme.mixes:
            memory_merge.fold(self, rows)
        held = self.held.map(lambda x: x[which])
        memory_columns.free(self, which, (held.kind != PAD) & scheme.kept(held, step, clock), exact)
        for r in rows:
            self.step[r] += 1

    def run(self, segments: Sequence[Sequence[Segment]]) -> Tensor:
        """Run segments row by row (each list ends with at most one compressed segment) and fold where one closed."""
        plans = [
            build([[]]) if self._bare(s, t, u) else layout(s, self.lm.scheme, self.lm.positions, clock=c, step=t, unfolded=u)
            for s, c, t, u in zip(segments, self.clock, self.step, memory_merge.unfolded(self))
        ]
        n = self.lm.scheme.n_comp if self.lm.positions == "base" else 0
        closed = [r for r, s in enumerate(segments) if s and s[-1].compress]
        clock = [c + sum(len(x.ids) for x in s) + n * (r in closed) for r, (s, c) in enumerate(zip(segments, self.clock))]
        plan = stack(plans)
        table = self.lm.base.get_input_embeddings().weight
        hidden = self.advance(plan, clock) if plan.shape[1] else table.new_empty(self.rows, 0, table.shape[1])
        self.fold(closed)
        return hidden

    def follow(self, texts: Sequence[Sequence[Segment]]) -> Iterator[tuple[list[Sequence[Segment]], Tensor]]:
        """Run texts of any number of segments, a row each, from boundary to boundary: what was run of each, and its hidden states."""
        turns = [runs(text) for text in texts]
        for i in range(max(map(len, turns))):
            now: list[Sequence[Segment]] = [t[i] if i < len(t) else [] for t in turns]
            yield now, self.run(now)

    def _bare(self, segments: Sequence[Segment], step: int, unfolded: int) -> bool:
        """Whether there is nothing to run: no segments, or boundaries alone of a scheme without comp tokens and slots."""
        stands = self.lm.scheme.n_comp or self.lm.scheme.slots(step, unfolded)
        return not any(s.ids or not s.compress or stands for s in segments)

    @torch.inference_mode()
    def write(self, text: str | Sequence[int]) -> None:
        """Compress a segment: text, of which the adapter's pin rules keep what they keep, or token ids; ValueError if it is empty."""
        fresh, later = ([segment_of(self.lm, text, first)] for first in (True, False))
        self.run([later if raw else fresh for raw in self.raw])

    @torch.inference_mode()
    def read(self, text: str | Sequence[int]) -> Tensor:
        """Read a prompt after the memory without compressing it; (rows, n, vocabulary) logits. To keep the memory: `fork` first."""
        ids = tuple(self._question(text))
        return self.lm.logits(self.run([[Segment(ids, compress=False, target=True)]] * self.rows))

    def _question(self, text: str | Sequence[int]) -> Sequence[int]:
        if not isinstance(text, str):
            return text
        if len({bool(raw) for raw in self.raw}) > 1:
            raise InputError(
                "some rows of the memory are empty and some are not, and their prompts begin differently; memory.pick them apart."
            )
        return [token for segment in self.lm.encoder.asked(text, first=not any(self.raw)) for token in segment.ids]

    @torch.inference_mode()
    def compress(self) -> None:
        """Close the segment that was read since the last boundary."""
        self.run([[Segment(())]] * self.rows)

    @property
    def tokens(self) -> int:
        """Entries a layer of the longest row."""
        return max(self.length)

    def nbytes(self) -> int:
        """Bytes of the keys, values and running averages that are alive, padding included (`untyped_storage`)."""
        alive = [x for layer in self.layers for x in (layer.keys, layer.values) if x is not None]
        alive += [x for pair in self.mean for x in pair]
        return sum(x.untyped_storage().nbytes() for x in alive)

    def save(self, path: str | Path) -> None:
        """Write the memory to a safetensors file, whole or not at all; `lm.open` reads it."""
        memory_file.save(self, path)

    def fork(self) -> Memory:
        """A memory with the same content that shares no storage with this one."""
        return self.pick(range(self.rows))

    def __deepcopy__(self, memo: dict[int, Any]) -> Memory:
        return self.fork()  # of what it holds, and not of its model

    def pick(self, rows: Sequence[int]) -> Memory:
        """Some of the rows, in this order, as a memory of their own."""
        return memory_rows.pick(self, rows)

    @classmethod
    def batch(cls, memories: Sequence[Memory]) -> Memory:
        """Several memories of one model, of any lengths, as the rows of one."""
        return memory_rows.batch(memories)

    def inputs(self, prompt: str | Sequence[int]) -> dict[str, Any]:
        """What the stock `model.generate` needs to go on from this memory (one row); the memory itself is not touched."""
        return memory_rows.inputs(self, self._question(prompt))

    def __repr__(self) -> str:
        return f"Memory(rows={self.rows}, step={self.step}, entries={self.length}, raw={self.raw}, bytes={self.nbytes()})"


from context_memory import memory_file, memory_rows  # noqa: E402  # both make memories
