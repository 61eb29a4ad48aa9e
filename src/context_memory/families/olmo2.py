"""OLMo 2: queries and keys are normalised as a whole before RoPE; norms stand behind attention and feed-forward."""

from __future__ import annotations

from torch import nn
from transformers import Olmo2Config, Olmo2ForCausalLM

from context_memory.families.base import Family


class Olmo2(Family):
    @staticmethod
    def tiny() -> nn.Module:
        return Olmo2ForCausalLM(
            Olmo2Config(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
                        num_key_value_heads=2, max_position_embeddings=256)
        )  # fmt: skip
