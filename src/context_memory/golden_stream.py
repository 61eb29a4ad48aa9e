"""Golden vectors of the original's streams, through our own `Stream`: `kv` (entries before and after every compression), `keys` and
`values` of the cache (after a compression, and at the end), `nlls`, `ppl` (the difference of the logarithms).

Its keys are kept as they are before the rotary embedding and stand where their place in the cache says. Ours are kept as they were
made and turned, so they are turned back to position 0 here. It makes room right after a token that was read with `window_size` entries
or more before it; we do before the next one: that is `Settings.cache` of one more, and for the last token a compression later.

`do_comparison` is a sliding window with the sink that is cut at the same moments to as many entries as the memory would have left.
A stream looks at SUM ids alone to choose between merge and concat, and its comp tokens always see what is in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from context_memory import plugins
from context_memory.golden_case import ModelCase, Unknown, apart
from context_memory.memory_turn import between, turned
from context_memory.schemes.base import Scheme
from context_memory.stream import Settings, SlidingWindow, Stream

States = tuple[Tensor, Tensor]
"""Keys that no position has turned, and values: (layers, kv heads, entries, head size), in the order of their positions."""


def states(stream: Stream) -> States:
    """What the cache holds."""
    memory, lm = stream.memory, stream.lm
    order, made = memory.now[0].argsort(), memory.held.position
    angles = {kind: between(*(lm.family.angles(lm.base, p, kind) for p in (made, made * 0))) for kind in set(memory.kinds)}
    keys = [turned(layer.keys, angles[kind])[0][:, order] for layer, kind in zip(memory.layers, memory.kinds)]
    return torch.stack(keys), torch.stack([layer.values[0][:, order] for layer in memory.layers])


@dataclass(frozen=True)
class Sizes(Settings):
    """Its slots need be no multiple of the comp tokens: the oldest chunk may have lost some of its entries and not the others."""

    def memory(self, scheme: Scheme, step: int) -> int:
        if scheme.mixes or self.slots is None or self.slots < scheme.n_comp:
            return super().memory(scheme, step)
        return min(step * scheme.n_comp, self.slots)


class Watched(Stream):
    """A stream that writes down every compression."""

    def __init__(self, *args: Any) -> None:
        self.done: list[tuple[int, States]] = []
        """Entries before, and what was there after."""
        super().__init__(*args)

    def _make_room(self) -> None:
        before = self.entries
        super()._make_room()
        self.done.append((before, states(self)))


class Beside(Watched, SlidingWindow):
    """The original's comparison: comp tokens at work are not counted."""

    def _more(self, step: int) -> int:
        return self.settings.memory(self.beside, step) if self.beside is not None else 0


class StreamCase(ModelCase):
    """A case of a stream."""

    def _scheme(self) -> Scheme:
        sums, n = self.meta["sum_token_ids"], self.meta["comp"]["num_comp_tokens"]
        if sums and not self.meta["do_comparison"] and not self.meta.get("value_merge_bug_fixed"):
            raise Unknown("this stream averages values from the keys, a defect of the original; we follow the vectors that have it mended.")
        return plugins.make("schemes", "merge" if sums else "concat", n_comp=n)  # type: ignore[return-value]

    def stream(self) -> Watched:
        """Ours, set up as theirs."""
        told, merges = self.meta, self.scheme.mixes
        slots = None if merges else told["comp_cache_size"]
        settings = Sizes(chunk=told["comp_size"], slots=slots, sink=told["sink_size"], cache=told["window_size"] + 1)
        if not told["do_comparison"]:
            return Watched(self.lm, settings)
        return Beside(self.lm.under(plugins.make("schemes", "full")), settings, self.scheme)  # type: ignore[arg-type]


def compare(case: StreamCase) -> Iterator[tuple[str, float | None]]:
    """(what, largest absolute difference), as of `golden.Comparison`."""
    stream, ids, tensors = case.stream(), case.tensors["input_ids"].flatten().tolist(), case.tensors
    nlls = stream.feed(ids[:-1])
    final, done = states(stream), len(stream.done)
    nlls = torch.cat([nlls, stream.feed(ids[-1:])])  # the last is predicted by what was there before
    if len(stream.done) > done:
        final = stream.done[-1][1]
    told = [[c["kv_before"], c["kv_after"]] for c in case.meta["compressions"]]
    yield "kv", apart(torch.tensor([[before, after[0].shape[2]] for before, after in stream.done]), torch.tensor(told))
    there = [(f"compress{i}.", after) for i, (_, after) in enumerate(stream.done)] + [("final_", final)]
    for at, what, name in ((0, "keys", "k"), (1, "values", "v")):
        yield what, max(apart(held[at], tensors[prefix + name]) for prefix, held in there if prefix + name in tensors)
    yield "nlls", apart(nlls, tensors["nlls"])
    yield "ppl", apart(nlls.mean(), torch.tensor(case.meta["ppl"]).log())
