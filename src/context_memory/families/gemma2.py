"""Gemma 2: capped attention scores and logits, scaled embeddings, every second layer slides a window."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import Gemma2Config, Gemma2ForCausalLM

from context_memory.families._gemma import Gemma

CAPPING = ("eager", "flex_attention", "flash_attention_2")
"""Attention implementations that cap the scores; sdpa leaves the cap out without a word."""


class Gemma2(Gemma):
    @staticmethod
    def tiny() -> nn.Module:
        return Gemma2ForCausalLM(
            Gemma2Config(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
                         num_key_value_heads=2, head_dim=8, max_position_embeddings=256, query_pre_attn_scalar=8, sliding_window=6,
                         attn_logit_softcapping=2.0, final_logit_softcapping=3.0)
        )  # fmt: skip

    def attention(self, config: Any) -> tuple[str, ...] | None:
        return CAPPING  # transformers refuses sdpa for this class even where nothing is capped
