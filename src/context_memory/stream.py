"""A stream of any length in a cache of one size: attention sink, compressed memory, and a window of the latest raw tokens.

Kim et al., ICLR 2024, section 4.3 (their streaming setting); the sink and positions that count within the cache: Xiao et al., ICLR
2024, arXiv:2309.17453. The cache holds, in this order of positions,

    sink    the first tokens of the stream, for good
    memory  the comp keys and values of what has left the window, folded by the adapter's scheme: merged, or side by side up to
            `slots` entries, of which the oldest are dropped
    window  the latest raw tokens: at most `window`, or as many as the two above leave of a `cache` of one size

When the window is full, its oldest `chunk` tokens are closed as a segment: the comp tokens run, right behind them, and see sink, memory
and that chunk and nothing of the window behind it, as they did in training; then the chunk is freed and everything moves up. In
between nothing moves. So a block of tokens is one forward pass under a causal mask, and token by token is the same computation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from context_memory.errors import InputError
from context_memory.memory_columns import free
from context_memory.memory_turn import MovingMemory
from context_memory.model import CompressedLM
from context_memory.plan import COMP, PAD, RAW, boundary_columns, build
from context_memory.schemes.base import Scheme

SPACINGS = ("cache", "text")
GROUPS = 4
"""Chunks that are remembered side by side if nobody says how many (Kim et al.: 8 slots, 2 a chunk)."""
MANY = 1 << 40
"""Chunks of a stream that has gone on for long."""
PIECE = 256
"""Most tokens of one forward pass, for the memory that their logits take."""


@dataclass(frozen=True)
class Settings:
    """How large the parts of the cache are, in entries."""

    window: int = 160
    chunk: int = 64
    slots: int | None = None
    """Most entries of the memory, for a scheme that keeps them side by side; None: four chunks' comp tokens."""
    sink: int = 4
    spacing: str = "cache"
    """Where the memory stands: `cache`, entry behind entry; `text`, every chunk's comp tokens keep the distance that the chunk's text
    had, as in training."""
    cache: int | None = None
    """Entries of sink, memory and window together, before room is made. It takes the place of `window`: the window shrinks while the
    memory fills (Kim et al.: 161, chunks of 64, 8 slots, a sink of 1)."""

    def __post_init__(self) -> None:
        for name, least in (("window", 2), ("chunk", 1), ("sink", 0)):
            if (value := getattr(self, name)) < least:
                raise InputError(f"{name} must be at least {least}, got {value}.")
        if self.cache is None and self.chunk > self.window:
            raise InputError(f"chunk is what leaves a full window at once: at most window={self.window}, got chunk={self.chunk}.")
        if self.spacing not in SPACINGS:
            raise InputError(f"spacing must be one of {', '.join(SPACINGS)}, got {self.spacing!r}.")

    def memory(self, scheme: Scheme, step: int) -> int:
        """Entries of the memory after `step` compressions.

        Raises:
            ValueError: `slots` does not fit the scheme.
        """
        n = scheme.n_comp
        if scheme.mixes:
            if self.slots not in (None, n):
                raise InputError(f"scheme '{scheme.name}' merges into its {n} slot(s); leave slots out, got slots={self.slots}.")
            return min(step, 1) * n
        slots = GROUPS * n if self.slots is None else self.slots
        if n and (slots < n or slots % n):
            raise InputError(f"slots must be a multiple of the {n} comp tokens of a chunk, got slots={slots}.")
        return min(step * n, slots)

    def raw(self, scheme: Scheme | None, step: int) -> int:
        """Raw tokens in the window when it is full, after `step` compressions. None: there is no memory."""
        return self.window if self.cache is None else self.cache - self.sink - (self.memory(scheme, step) if scheme else 0)


class Stream:
    """Reads token ids for as long as they come, in constant memory. `lm.scheme` says how the memory folds.

    Raises:
        ValueError: a scheme that cannot compress again and again; a cache that is larger than the model's range of positions.
    """

    def __init__(self, lm: CompressedLM, settings: Settings) -> None:
        self.lm, self.settings = lm, settings
        self._check()
        self.memory = MovingMemory(lm)
        self.seen = 0
        """Tokens read."""
        self.recent = 0
        """Raw tokens since the chunk that was last compressed."""
        self.folds = 0
        self.peak_entries = self.peak_bytes = 0
        """The most that was held, comp tokens at work included."""
        self.looked_at = 0
        """Entries that each token attended to, itself included, summed over tokens."""
        self._last: Tensor | None = None
        self._settle()

    def _check(self) -> None:
        scheme, n = self.lm.scheme, self.lm.scheme.n_comp
        self.lm.family.must_be_causal("a stream")
        if not n or scheme.max_steps is not None or not scheme.static or scheme.slides or self._other(scheme):
            use = "use merge or concat (scheme.window=0 scheme.cache=0: a stream has its own)"
            raise InputError(f"scheme '{scheme.name}' does not add one chunk after another to a memory; {use}.")
        self._fits(self._room(self.settings.memory(scheme, MANY)) + n)
        if not self.lm.family.streams:
            raise InputError(
                f"'{type(self.lm.family).__name__}' turns its keys otherwise than streams can (docs/families.md); use another model."
            )

    @staticmethod
    def _other(scheme: Scheme) -> bool:
        """Whether it holds something else than all comp tokens, or one running average of them."""
        return scheme.capacity(MANY) != (scheme.n_comp if scheme.mixes else MANY * scheme.n_comp)

    def _fits(self, entries: int) -> None:
        """Whether the cache has room for a chunk, and the model for as many entries beside sink and raw tokens."""
        s, raw = self.settings, self._window(MANY)
        if raw < s.chunk:
            raise InputError(f"cache={s.cache} leaves {raw} raw tokens beside sink and memory, fewer than chunk={s.chunk}; make it larger.")
        if s.chunk <= (more := self._window(0) - self._window(1)):
            raise InputError(f"compressing makes no room: chunk must be more than the {more} entries that remember it, got {s.chunk}.")
        if (last := s.sink + raw + entries) > (limit := self.lm.max_positions):
            raise InputError(f"the cache reaches position {last} and the model was made for {limit}; make window, slots or sink smaller.")

    def _window(self, step: int) -> int:
        """Raw tokens in the window when it is full, after `step` compressions."""
        return self.settings.raw(self.lm.scheme, step)

    def _room(self, entries: int) -> int:
        """Positions that so many entries of the memory take up."""
        return entries if self.settings.spacing == "cache" else entries // max(self.lm.scheme.n_comp, 1) * self._stride

    @property
    def _stride(self) -> int:
        """Positions that the memory of one chunk takes up."""
        n = self.lm.scheme.n_comp
        if self.settings.spacing == "cache":
            return n
        return self.settings.chunk + (n if self.lm.positions == "base" else 0)

    @property
    def entries(self) -> int:
        """Entries a layer held now."""
        return self.memory.tokens

    def nbytes(self) -> int:
        """Bytes of the keys, values and running averages held now."""
        return self.memory.nbytes()

    @torch.no_grad()
    def feed(self, ids: Sequence[int]) -> Tensor:
        """Read on; the negative log-likelihood of every token after all before it (on the CPU). The stream's first has none."""
        out: list[Tensor] = []
        s, at = self.settings, 0
        while at < len(ids):
            if self.recent == self._window(self.folds):
                self._make_room()
                self.recent -= s.chunk
                self.folds += 1
            room = s.sink - self.seen if self.seen < s.sink else self._window(self.folds) - self.recent
            piece = ids[at : at + min(room, PIECE)]
            out.append(self._run(piece, pin=self.seen < s.sink))
            at += len(piece)
        return torch.cat(out) if out else torch.zeros(0)

    def _run(self, ids: Sequence[int], pin: bool) -> Tensor:
        memory, n = self.memory, len(ids)
        clock, step, held = memory.clock[0], memory.step[0], memory.tokens
        plan = build([[(RAW, step, True, pin, clock + i, token, 0) for i, token in enumerate(ids)]])
        hidden = memory.advance(plan, [clock + n])[0]
        before = hidden[:0] if self._last is None else self._last
        rows = torch.cat([before, hidden[:-1]])
        self._last = hidden[-1:].clone()
        labels = plan.ids[0, n - len(rows) :].to(rows.device)
        logits = self.lm.logits(rows)
        nll = cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), labels, reduction="none")
        self._note()
        self.seen += n
        self.looked_at += n * held + n * (n + 1) // 2
        if not pin:
            self.recent += n
        elif self.seen == self.settings.sink:
            self._settle()
        return nll.cpu()

    def _note(self) -> None:
        self.peak_entries, self.peak_bytes = max(self.peak_entries, self.entries), max(self.peak_bytes, self.nbytes())

    def _raw(self) -> Tensor:
        """Columns of the window, oldest first."""
        held = self.memory.held
        return (held.raw & ~held.pin)[0, : self.memory.tokens].nonzero()[:, 0]

    def _make_room(self) -> None:
        """Close the oldest chunk: comp tokens behind it, then fold; of memories side by side the oldest go."""
        memory, scheme, step = self.memory, self.lm.scheme, self.memory.step[0]
        raw, chunk = self._raw(), self.settings.chunk
        memory.held.segment[0, raw[chunk:]] = step + 1  # the next segment: no comp token of this one sees it, and the fold leaves it
        clock = int(memory.now[0, raw[chunk - 1]]) + 1
        memory.advance(build([boundary_columns(scheme, step, clock, chunk)]), [clock + scheme.n_comp])
        self._note()
        if not scheme.mixes:
            comp = (memory.held.kind[0] == COMP).nonzero()[:, 0]
            memory.held.kind[0, comp[: len(comp) - self.settings.memory(scheme, step + 1)]] = PAD
        memory.fold([0])
        self._settle()

    def _settle(self) -> None:
        """Positions anew: sink, memory, window."""
        memory, stride, n = self.memory, self._stride, max(self.lm.scheme.n_comp, 1)
        held, now = memory.held, torch.zeros_like(memory.held.position)
        sinks, kept, raw = held.pin[0].nonzero()[:, 0], (~held.raw)[0].nonzero()[:, 0], self._raw()
        held.segment[0, sinks] = -1  # before all text: a model's own sliding window leaves it
        first = len(sinks) + (0 if self.settings.spacing == "cache" else self.settings.chunk)
        start = len(sinks) + self._room(len(kept))
        rank = torch.arange(len(kept), device=now.device)
        now[0, sinks] = torch.arange(len(sinks), device=now.device)
        now[0, kept] = first + rank // n * stride + rank % n
        now[0, raw] = torch.arange(start, start + len(raw), device=now.device)
        memory.move(now, start + len(raw))


class SlidingWindow(Stream):
    """The baseline without a memory: sink and window alone (StreamingLLM), with room for as many entries as a stream of the scheme
    `beside` holds at the same moment, its comp tokens at work included: it never has fewer. It moves at the same moments."""

    def __init__(self, lm: CompressedLM, settings: Settings, beside: Scheme | None = None) -> None:
        self.beside = beside
        super().__init__(lm, settings)

    def _check(self) -> None:
        if self.lm.scheme.hides:
            raise InputError(f"a window without a memory runs the plain model; load it with scheme=full, got '{self.lm.scheme.name}'.")
        self._fits(self._more(MANY))

    def _window(self, step: int) -> int:
        return self.settings.raw(self.beside, step)

    def _more(self, step: int) -> int:
        """Raw tokens beyond the window that take the room of memory and comp tokens."""
        if self.beside is None:
            return 0
        return self.settings.memory(self.beside, step) + len(boundary_columns(self.beside, 0, 0, self.settings.chunk))

    def _make_room(self) -> None:
        raw, memory, s = self._raw(), self.memory, self.settings
        stays = self._window(self.folds) - s.chunk + self._more(self.folds + 1)
        keep = memory.held.pin.clone()
        keep[0, raw[max(0, len(raw) - stays) :]] = True
        free(memory, torch.tensor([0], device=keep.device), keep)
        self._settle()
