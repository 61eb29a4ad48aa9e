"""What a scheme is: who sees whom, and how fresh comp keys and values join the memory. It never imports a model.

Everything else is derived. One pass: the mask is `sees`, the slots are `rate` unrolled. Step by step: what a boundary
frees is what `sees` says no later token can see, and the slots are updated by `rate`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from context_memory import plugins
from context_memory.errors import InputError
from context_memory.plan import RAW, Tokens
from context_memory.text import Segment


class Scheme(ABC):
    """A scheme. Subclasses are frozen dataclasses whose fields are its settings; all have `n_comp`."""

    plugin: ClassVar[bool] = True
    pools: ClassVar[bool] = False
    """Whether slots are means of the raw keys and values of their own segment, instead of comp tokens' (then `mixes` as well)."""
    max_steps: ClassVar[int | None] = None
    """Most compressions of one memory; None for any number."""
    static: ClassVar[bool] = True
    """Whether what is kept is known before a model has run. If not, a memory asks `choose`, there is no mask, and so there is no
    one pass: neither training nor likelihood."""
    learned: bool = False
    """Whether a trained parameter moves `rate`."""
    lag: int = 0
    """For how many tokens after its own a comp token is not looked at by text: so long may a decode loop put it off."""
    n_comp: int
    """Comp tokens of a segment; 0 for schemes that have none."""

    @property
    def mixes(self) -> bool:
        """Whether comp keys and values are folded into slots (then `rate` says how), or raw ones (`pools`)."""
        return False

    @property
    def delay(self) -> int:
        """How many compressions after its own a comp group is folded into the slots. Until then it is held as it is."""
        return 0

    @property
    def name(self) -> str:
        return type(self).__module__.rsplit(".", 1)[-1]

    @property
    def title(self) -> str:
        """For people: `concat n_comp=2 window=44`."""
        return plugins.title("schemes", {"name": self.name, **vars(self)})

    def check(self, windowed: bool) -> None:
        """Raises InputError if the scheme cannot run on a model, which may be `windowed`: slide a window of its own over positions."""
        if windowed and not self.static:
            raise InputError(
                f"scheme '{self.name}' keeps other tokens in every head and this model slides a window over positions, so what it may "
                "still see is not known; use scheme=window, or a model without one."
            )

    @property
    def hides(self) -> bool:
        """Whether the scheme forgets anything at all."""
        return True

    @property
    def slides(self) -> bool:
        """Whether raw tokens of closed segments go out of view between boundaries."""
        return False

    @classmethod
    def variants(cls) -> list[Scheme]:
        """Settings that the laws are run with."""
        return [cls()]

    @abstractmethod
    def sees(self, q: Tokens, k: Tokens) -> Tensor:
        """Whether token q sees the earlier token k; elementwise, broadcasting. Pins and causality are not its business."""

    @abstractmethod
    def capacity(self, step: int) -> int:
        """Most entries a layer that the memory holds after `step` compressions, pins not counted."""

    def slots(self, step: int, unfolded: int) -> int:
        """How many slots compression number `step` fills, of a segment of `unfolded` tokens, pins not counted."""
        return self.n_comp if self.mixes and step >= self.delay else 0

    def rate(self, step: int) -> float:
        """Weight a_t in the slots of the comp keys and values that are folded in as number `step` (from 0). The first weighs 1."""
        raise NotImplementedError(f"scheme '{self.name}' does not mix.")

    def arrange(self, segments: Sequence[Segment]) -> Sequence[Segment]:
        """A chance to join segments before they are laid out."""
        return segments

    def kept(self, k: Tokens, step: Tensor, clock: Tensor) -> Tensor:
        """Whether token k outlives compression number `step`: is it a pin, or would the next token, at position `clock`, see it?

        A token that the next one does not see is seen by none after it: schemes forget for good.
        """
        return k.pin | self.sees(_reader(step + 1, clock), k)

    def left_behind(self, k: Tokens, step: Tensor, clock: Tensor) -> Tensor:
        """Whether token k is of a segment that closed before number `step` and out of view of a token at position `clock`, for good."""
        return k.raw & ~k.pin & (k.segment < step) & ~self.sees(_reader(step, clock), k)

    def choose(self, keys: Tensor, k: Tokens, most: int) -> Tensor:
        """(rows, heads, most) columns that stay of the keys (rows, heads, columns, head size) of one layer: pins first, then as
        many others as `kept` counts, in their order. For a scheme that is not static; k is (rows, columns)."""
        raise NotImplementedError(f"scheme '{self.name}' does not look at keys.")


def _reader(segment: Tensor, position: Tensor) -> Tokens:
    """A raw token of that segment at that position, which reads the memory."""
    no = torch.zeros_like(segment)
    return Tokens(kind=no + RAW, segment=segment, reads=no == 0, pin=no != 0, position=position, index=segment, row=no)


def check_n_comp(n_comp: int) -> None:
    """Raises ValueError unless `n_comp` is at least 1."""
    if n_comp < 1:
        raise InputError(f"n_comp must be at least 1, got {n_comp}; to keep nothing of a segment use scheme=nothing.")
