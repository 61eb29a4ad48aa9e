"""How to decode, and what comes of it: an answer with what its memory cost. Values alone."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from operator import index
from typing import Any

from context_memory.errors import InputError

REFUSED = {
    "num_beams": "beams share a memory that each of them would compress differently",
    "assistant_model": "assisted decoding rolls back tokens that are folded into the memory already",
    "prompt_lookup_num_tokens": "assisted decoding rolls back tokens that are folded into the memory already",
    "repetition_penalty": "penalties need the text that the memory has forgotten",
    "no_repeat_ngram_size": "penalties need the text that the memory has forgotten",
}

LEAST = 1e-4
"""The lowest temperature to sample with: logits are divided by it."""


@dataclass(frozen=True)
class Settings:
    """How to decode. `temperature=0` is greedy; row i of a batch is sampled with the seed `seed + i`."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.stop, str) or "" in self.stop:
            raise InputError(f"stop must be texts with something in them, as in stop=('###',), got {self.stop!r}.")
        if not hasattr(self.max_new_tokens, "__index__") or isinstance(self.max_new_tokens, bool) or self.max_new_tokens < 1:
            raise InputError(f"max_new_tokens must be a whole number of at least 1, got {self.max_new_tokens}.")
        if not (self.temperature == 0 or LEAST <= self.temperature < math.inf) or not 0 < self.top_p <= 1:
            raise InputError(
                f"temperature must be 0 (greedy) or at least {LEAST:g}, and top_p in (0, 1], got {self.temperature} and {self.top_p}."
            )
        for name, kind in (("max_new_tokens", index), ("temperature", float), ("top_p", float)):
            object.__setattr__(self, name, kind(getattr(self, name)))

    @classmethod
    def of(cls, **options: Any) -> Settings:
        """From keyword arguments as of transformers' `generate`.

        Raises:
            InputError: an option that there is not, or that cannot work on a compressed memory, with the reason.
        """
        for name, reason in REFUSED.items():
            if options.pop(name, None) not in (None, 1, 1.0, 0):
                raise InputError(f"{name} is not supported with a compressed memory: {reason}.")
        sample = options.pop("do_sample", None)
        options |= {"temperature": 0.0} if sample is False else {"temperature": options.get("temperature", 1.0)} if sample else {}
        stop = options.pop("stop", None)
        options["stop"] = () if stop is None else (stop,) if isinstance(stop, str) else tuple(stop)
        if unknown := sorted(set(options) - (known := {f.name for f in fields(cls)})):
            raise InputError(f"no option {', '.join(unknown)}; have: {', '.join(sorted(known))}, do_sample.")
        return cls(**options)

    def begun(self, text: str) -> int:
        """How many characters at the end of the text may be the beginning of a stop string."""
        return max((n for stop in self.stop for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)


@dataclass
class Output:
    """One answer and what it cost. Entries are counted a layer, the current segment and comp tokens included."""

    ids: list[int] = field(default_factory=list)
    text: str = ""
    reason: str = "length"
    """Why it ended: `eos`, `stop` (a stop string) or `length` (of `max_new_tokens`, or of what the model has positions for)."""
    compressions: int = 0
    prompt_tokens: int = 0
    """Raw tokens given before the answer."""
    peak_kv_tokens: int = 0
    """Most entries held at once, from the first generated token on; of an answer of one token, which is never fed, the prompt's."""
    peak_reasoning_kv_tokens: int = 0
    """The same without what is held of the prompt verbatim."""
    mean_kv_tokens: float = 0.0
    mean_reasoning_kv_tokens: float = 0.0
    peak_kv_bytes: int = 0
    """Live bytes of this row's share of the buffers at their largest, padding included."""
