"""The mask in the form that each attention implementation takes, and what is done around the stock attention function.

Seam: transformers 5.23, `AttentionInterface.register` and `AttentionMaskInterface.register`. Our function calls the stock one. Before
that it overwrites keys and values at slot columns (mixing schemes), and spreads out the queries of rows of different lengths: all
other layers run the real tokens alone, side by side, so that a row pays nothing for the comp tokens of another. With neither to do it
*is* the stock one, but that a few queries of grouped heads go to torch directly (`grouped.py`), that on a GPU cuDNN's kernel is left
out (`cudnn.py`), and that a CPU trains short rows in float32 (`widened.py`).
A boolean mask is right for sdpa alone: eager *adds* what it gets, flex_attention wants a BlockMask, and
flash_attention_2 takes no such mask at all.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import eager_attention_forward

from context_memory.cudnn import without_cudnn
from context_memory.errors import InputError
from context_memory.grouped import few, grouped
from context_memory.mixing import Mix
from context_memory.widened import widened

IMPLEMENTATIONS = ("sdpa", "eager", "flex_attention", "flash_attention_2")
PREFIX = "ccm_"
SPREADS = ("sdpa", "eager")
"""Implementations whose mask says row by row what is seen."""


@dataclass(frozen=True)
class Lanes:
    """Where the real tokens of a padded batch sit, while they run side by side as one row."""

    index: Tensor
    """(N,) of every real token, into rows * n."""
    rows: int
    n: int

    @classmethod
    def of(cls, real: Tensor) -> Lanes:
        """From (rows, n) bool."""
        return cls(real.flatten().nonzero()[:, 0], *real.shape)

    def gather(self, x: Tensor) -> Tensor:
        """(rows, n, ...) -> (1, N, ...)"""
        return x.flatten(0, 1)[self.index][None]

    def spread(self, x: Tensor) -> Tensor:
        """(1, N, ...) -> (rows, n, ...), zeros at padding."""
        out = x.new_zeros(self.rows * self.n, *x.shape[2:])
        return out.index_copy(0, self.index, x[0]).unflatten(0, (self.rows, self.n))


def eager_of(module: nn.Module) -> Callable[..., Any]:
    """What "eager" means to an attention layer: each modeling file has a function of its own (Gemma 2's caps the scores)."""
    return getattr(sys.modules[type(module).__module__], "eager_attention_forward", eager_attention_forward)


def _ours(implementation: str) -> Callable[..., Any]:
    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, kv_mix: Mix | None = None,
        lanes: Lanes | None = None, **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """(b, heads, q, d) x (b, kv heads, n, d) -> (b, q, heads, d), as every attention function of transformers; with `lanes`, the
        queries and what comes out are (1, heads, N, d) and (1, N, heads, d)."""
        if kv_mix is not None:
            key, value = kv_mix.fill(key, value, int(module.layer_idx))  # type: ignore[arg-type]
        stock = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_of(module))
        if lanes is not None:
            query = lanes.spread(query.transpose(1, 2)).transpose(1, 2)
        with grouped(query), without_cudnn(query.device):
            out = few(query, key, value, attention_mask, **kwargs) if implementation == "sdpa" else None
            weights = None
            if out is None:
                wide = widened(query, key, value) if implementation == "sdpa" else (query, key, value)
                out, weights = stock(module, *wide, attention_mask, **kwargs)
                out = out.to(query.dtype)
        return (out if lanes is None else lanes.gather(out)), weights

    return attend


for _name in IMPLEMENTATIONS:  # here and not at the first use, so that a model that comes from another process finds its own
    AttentionInterface.register(PREFIX + _name, _ours(_name))
    if _name in ALL_MASK_ATTENTION_FUNCTIONS:
        AttentionMaskInterface.register(PREFIX + _name, ALL_MASK_ATTENTION_FUNCTIONS[_name])


def use(model: nn.Module, implementation: str, mixes: bool) -> None:
    """Set the attention implementation of a transformers model; ours around it where it can serve.

    Raises:
        ValueError: unknown implementation, flash attention for a scheme that mixes, or an encoder-decoder.
        ImportError: flash attention that is not installed.
    """
    if implementation not in IMPLEMENTATIONS:
        raise InputError(f"attn_implementation must be one of {', '.join(IMPLEMENTATIONS)}, got {implementation!r}.")
    if getattr(model.config, "is_encoder_decoder", False):
        raise InputError(f"'{model.config.model_type}' is an encoder-decoder; make it with CompressedSeq2Seq (encoder_decoder.py).")  # type: ignore[union-attr]
    if mixes and implementation == "flash_attention_2":
        raise InputError("flash_attention_2 cannot fill memory slots; use attn_implementation=sdpa for a scheme that merges.")
    model.set_attn_implementation((PREFIX if mixes or implementation in SPREADS else "") + implementation)  # type: ignore[operator]


def implementation_of(model: nn.Module) -> str:
    """The stock name of the implementation that is in use."""
    return str(model.config._attn_implementation).removeprefix(PREFIX)  # type: ignore[union-attr]


def form(mask: Tensor, implementation: str, dtype: torch.dtype) -> Any:
    """(b, q, k) bool -> what `implementation` takes.

    Raises:
        ValueError: flash attention, which takes no mask of this kind.
    """
    if implementation == "sdpa":
        return mask[:, None]
    if implementation == "eager":
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)[:, None]
    if implementation == "flex_attention":
        from torch.nn.attention.flex_attention import create_block_mask

        b, q, k = mask.shape
        return create_block_mask(lambda b, h, i, j: mask[b, i, j], b, None, q, k, device=str(mask.device))
    raise InputError(
        f"{implementation} takes no mask that hides forgotten tokens: it serves scheme=full and plain unpadded text; "
        "use attn_implementation=sdpa."
    )
