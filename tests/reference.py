"""A slow, plain second opinion, straight from the paper: the recursion, token by token, without a mask and without a plan.

Mem(t) = g_update(Mem(t-1), g_comp(Mem(t-1), c(t))) (Kim et al. 2024, section 3.1). A stock model with a stock cache is fed one
token at a time, so that each sees exactly what the cache holds; a second stock model, with the LoRA added into its weights,
runs the comp tokens. What is remembered is a list of every h(t), and the memory is made from that list anew each time.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from context_memory.model import CompressedLM
from context_memory.text import Segment

States = list[tuple[Tensor, Tensor]]
"""Layer by layer, keys and values (1, heads, some columns, head size)."""

WRITTEN = ("capped", "compressive", "concat", "full", "gist", "merge", "nothing", "window")
"""Schemes whose recursion is written here; `test_reference.py` skips others, and says so."""


@dataclass
class Entry:
    """What the memory or the open segment holds of one token (or one slot)."""

    states: States
    near: int | None = None
    """The position of a raw token, which a sliding window passes by; None for what is memory: comp tokens, slots, pins."""


def stock(lm: CompressedLM, adapted: bool = False, window: bool = False):  # type: ignore[no-untyped-def]
    """A fresh transformers model with the same weights; adapted: the LoRA added into them; window: with its sliding window."""
    config = deepcopy(lm.base.config)
    config._attn_implementation = (lm.family.attention(config) or ("sdpa",))[0]
    if not window and getattr(config, "sliding_window", None):
        # A layer that slides a window may differ in more than that (its rope): it stays, and the window passes by nothing.
        config.sliding_window = 1 << 30 if getattr(config, "layer_types", None) else None
    model = type(lm.base)(config).to(lm.base.dtype).eval()
    weights = {k.replace(".base_layer", ""): v.clone() for k, v in lm.base.state_dict().items() if "lora_" not in k}
    for name, a in lm.base.state_dict().items():
        if adapted and ".lora_A." in name:
            b = lm.base.state_dict()[name.replace("lora_A", "lora_B")]
            scaling = lm.peft.peft_config["default"].lora_alpha / lm.peft.peft_config["default"].r
            weights[name.split(".lora_A")[0] + ".weight"] += scaling * b @ a
    model.load_state_dict(weights)
    return model


class Reference:
    """The recursion of one text. `feed` takes a segment and gives the logits of its raw tokens."""

    def __init__(self, lm: CompressedLM) -> None:
        self.lm = lm
        self.frozen, self.adapted = stock(lm), stock(lm, adapted=True)
        window, types = getattr(lm.base.config, "sliding_window", None), getattr(lm.base.config, "layer_types", None)
        self.windows = [window if t == "sliding_attention" else None for t in types] if types else [window] * lm.n_layers
        self.pins: list[Entry] = []
        self.open: list[Entry] = []
        """Tokens that were read since the last boundary (with scheme=window, ever) and are not pinned."""
        self.reach: int | None = lm.scheme.size if lm.scheme.name == "window" else None
        self.late: list[Entry] = []
        """With a window of concat: the raw tokens of all segments that were compressed, pins not."""
        self.h: list[States] = []
        """The comp keys and values of every compression so far, n_comp columns each."""
        self.ends: list[int] = []
        """The position after each of these."""
        self.pooled: list[Entry] = []
        """Means of raw keys and values."""
        self.clock = 0

    def _back(self) -> int:
        """How many raw tokens of compressed segments are still looked back at: of a shared cache, what comp tokens leave."""
        scheme = self.lm.scheme
        return max(scheme.window, scheme.cache - scheme.n_comp * len(self.h))

    def memory(self, near: int | None) -> list[Entry]:
        """What the scheme makes of h(1) ... h(t), and of pooled segments, for a raw token at `near` or a comp token (None)."""
        scheme, t = self.lm.scheme, len(self.h)
        if scheme.lag:
            placed = [(c, at + j) for h, at in zip(self.h, self.ends) for j, c in enumerate(columns(h))]
            return [Entry(c) for c, at in placed if near is None or near - at >= scheme.lag]
        if scheme.name == "capped":
            old = max(0, t - scheme.cap + (scheme.evicted == "merged"))
            merged = [Entry(summed([1 / old] * old, self.h[:old]))] if old and scheme.evicted == "merged" else []
            return [*merged, *(Entry(h) for h in self.h[old:])]
        if scheme.name != "merge" or not t:
            return [*self.pooled, *(Entry(h) for h in self.h)]
        if scheme.learned:
            return [Entry(self.learned())]
        if scheme.average == "exponential":
            a = scheme.decay
            return [Entry(summed([(1 - a) ** (t - 1)] + [a * (1 - a) ** (t - 1 - j) for j in range(1, t)], self.h))]
        parts = [1 if scheme.average == "mean" else j**scheme.power for j in range(1, t + 1)]
        return [Entry(summed([x / sum(parts) for x in parts], self.h))]

    def learned(self) -> States:
        """The running average whose rate a learned parameter moves, a layer, a head and a slot at a time."""
        rate, out = self.lm.comp.rate, [(k.clone(), v.clone()) for k, v in self.h[0]]
        for t, h in enumerate(self.h[1:], start=2):
            for i, (fresh, held) in enumerate(zip(h, out)):
                for head in range(fresh[1].shape[1]):
                    for slot in range(fresh[1].shape[2]):
                        moved = rate.bias[i, head, slot] + rate.weight[i, head, slot] @ fresh[1][0, head, slot]
                        a = 1 / (1 + (t - 1) * torch.exp(-moved))
                        for x, y in zip(held, fresh):
                            x[0, head, slot] += a * (y[0, head, slot] - x[0, head, slot])
        return out

    def feed(self, segment: Segment) -> list[Tensor]:
        """Read a segment token by token; at its end, if it is compressed, run the comp tokens and forget it."""
        recurrent = getattr(self.lm.scheme, "recurrent", True)
        context = segment.compress and not segment.target
        out = []
        for i, token in enumerate(segment.ids):
            embedded = self.frozen.get_input_embeddings()(torch.tensor([[token]]))
            logits, states = self._token(self.frozen, embedded, self.clock, recurrent or not context, near=self.clock)
            out.append(logits)
            kept = bool(segment.pins) and segment.pins[i] and self.lm.scheme.name != "full"
            (self.pins if kept else self.open).append(Entry(states, near=self.clock))
            self.clock += 1
        if segment.compress and self.lm.scheme.name != "full":
            self._boundary(recurrent)
        return out

    def _boundary(self, recurrent: bool) -> None:
        comp: list[Entry] = []
        scale = getattr(self.frozen.get_input_embeddings(), "embed_scale", 1.0)
        for j, row in enumerate(self.lm.comp.weight):
            _, states = self._token(self.adapted, row[None, None] * scale, self.clock + j, recurrent, beside=comp)
            comp.append(Entry(states))
        self.ends.append(self.clock)
        if comp:
            layers = zip(*(c.states for c in comp))
            self.h.append([(torch.cat([k for k, _ in layer], 2), torch.cat([v for _, v in layer], 2)) for layer in layers])
        self.pins = [Entry(pin.states) for pin in self.pins]
        if self.lm.scheme.name == "compressive":
            n, many = len(self.open), min(len(self.open), self.lm.scheme.entries)
            edges = [-(-i * n // many) for i in range(many + 1)] if many else []
            runs = [[e.states for e in self.open[a:b]] for a, b in itertools.pairwise(edges)]
            self.pooled += [Entry(summed([1 / len(run)] * len(run), run)) for run in runs]
        self.late += self.open if self.lm.scheme.name == "concat" else []
        self.open = self.open if self.reach else []
        self.clock += len(comp) if self.lm.positions == "base" else 0

    def _token(self, model, embedded, position, reads, near=None, beside=()):  # type: ignore[no-untyped-def]
        """One token after pins, memory (if it reads it), the open segment and `beside`: (logits, its own keys and values)."""
        cache = DynamicCache()
        read = [e for e in self.open if not self.reach or position - e.near < self.reach]  # type: ignore[operator]
        late = [e for e in self.late if reads and position - e.near <= self._back() - self.lm.scheme.lag * (near is None)]  # type: ignore[operator]
        seen = [*self.pins, *(self.memory(near) if reads else []), *late, *read, *beside]
        for i, window in enumerate(self.windows):
            for entry in seen:
                if window is None or near is None or entry.near is None or near - entry.near < window:
                    cache.update(*entry.states[i], i)
        # Layers hold different numbers of entries, and every one is seen: eager would add one mask, of the first layer's length.
        nothing = torch.zeros(1, 1, 1, 1) if model.config._attn_implementation == "eager" else None
        out = model(
            inputs_embeds=embedded, position_ids=torch.tensor([[position]]), past_key_values=cache, use_cache=True, attention_mask=nothing
        )
        return out.logits[0, -1], [(layer.keys[:, :, -1:], layer.values[:, :, -1:]) for layer in cache.layers]


def columns(states: States) -> list[States]:
    """One column of every layer after the other."""
    return [[(k[:, :, j : j + 1], v[:, :, j : j + 1]) for k, v in states] for j in range(states[0][0].shape[2])]


def summed(weights: Sequence[float], states: Sequence[States]) -> States:
    """The weighted sum, a layer and a column at a time."""
    both = [[sum(w * x[i][s] for w, x in zip(weights, states, strict=True)) for s in (0, 1)] for i in range(len(states[0]))]
    return [(k, v) for k, v in both]  # type: ignore[misc]


def logits(lm: CompressedLM, segments: list[Segment]) -> Tensor:
    """(raw tokens, vocabulary) by the recursion."""
    reference = Reference(lm)
    with torch.no_grad():
        return torch.stack([x for s in segments for x in reference.feed(s)])
