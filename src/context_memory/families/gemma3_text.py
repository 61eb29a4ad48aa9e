"""Gemma 3, text only: local and global layers with a rope each, normalised queries and keys, scaled embeddings."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from context_memory.errors import InputError
from context_memory.families._gemma import Gemma


class Gemma3Text(Gemma):
    @staticmethod
    def tiny() -> nn.Module:
        local, wide = {"rope_type": "default", "rope_theta": 100.0}, {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
        return Gemma3ForCausalLM(
            Gemma3TextConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
                             num_key_value_heads=2, head_dim=8, max_position_embeddings=256, query_pre_attn_scalar=8,
                             sliding_window=6, layer_types=["sliding_attention", "sliding_attention", "full_attention"],
                             rope_parameters={"sliding_attention": local, "full_attention": wide})
        )  # fmt: skip

    def check(self, config: Any) -> None:
        super().check(config)
        if config.attn_logit_softcapping is not None:  # the modeling file does not hand it to the attention function
            raise InputError("attn_logit_softcapping is set, and transformers' Gemma 3 does not apply it; leave it null.")
