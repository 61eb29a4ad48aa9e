"""An encoder's self-attention beside a memory: earlier keys and values come in front, slots are filled, distances are by position.

Seam: transformers 5.23, `AttentionInterface.register` and `AttentionMaskInterface.register`, as in `attention.py`. An encoder of
transformers takes no cache and counts its positions from 0; but unknown keyword arguments flow from it through every layer down to
the attention function, and that is given keys, values and position bias before anything is computed with them. With none of our
arguments it *is* the stock function.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.t5.modeling_t5 import eager_attention_forward

from context_memory.attention import PREFIX, SPREADS
from context_memory.cudnn import without_cudnn
from context_memory.errors import InputError
from context_memory.mixing import Mix

if TYPE_CHECKING:
    from context_memory.memory import Memory


def _ours(implementation: str) -> Callable[..., Any]:
    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, position_bias: Tensor | None = None,
        kv_memory: Memory | None = None, kv_mix: Mix | None = None, kv_bias: Tensor | None = None, **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """(b, heads, q, d) x (b, heads, n, d) -> (b, q, heads, d), after what `kv_memory` holds."""
        if kv_memory is not None:
            key, value = kv_memory.update(key, value, module.layer_idx)  # type: ignore[arg-type]
        if kv_mix is not None:
            key, value = kv_mix.fill(key, value, int(module.layer_idx))  # type: ignore[arg-type]
        stock = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        bias = position_bias if kv_bias is None else kv_bias
        with without_cudnn(query.device):
            out: tuple[Tensor, Tensor | None] = stock(module, query, key, value, attention_mask, position_bias=bias, **kwargs)
        return out

    return attend


for _name in SPREADS:
    AttentionInterface.register(f"{PREFIX}encoder_{_name}", _ours(_name))
    AttentionMaskInterface.register(f"{PREFIX}encoder_{_name}", ALL_MASK_ATTENTION_FUNCTIONS[_name])


def use(model: nn.Module, implementation: str, mixes: bool) -> None:
    """Set the attention implementation of an encoder-decoder, ours around it in the encoder alone.

    Raises:
        ValueError: an implementation that has no mask of ours, or a decoder-only model.
    """
    if not getattr(model.config, "is_encoder_decoder", False):
        raise InputError(f"'{model.config.model_type}' is no encoder-decoder; make it with CompressedLM.")  # type: ignore[union-attr]
    if implementation not in SPREADS:
        raise InputError(f"attn_implementation of an encoder-decoder must be one of {', '.join(SPREADS)}, got {implementation!r}.")
    model.set_attn_implementation(implementation)  # type: ignore[operator]
    model.get_encoder().set_attn_implementation(f"{PREFIX}encoder_{implementation}")  # type: ignore[operator]
