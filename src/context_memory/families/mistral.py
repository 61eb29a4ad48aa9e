"""Mistral: every layer slides a window over the raw tokens."""

from __future__ import annotations

from torch import nn
from transformers import MistralConfig, MistralForCausalLM

from context_memory.families.base import Family


class Mistral(Family):
    @staticmethod
    def tiny() -> nn.Module:
        return MistralForCausalLM(
            MistralConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
                          num_key_value_heads=2, max_position_embeddings=256, sliding_window=6)
        )  # fmt: skip
