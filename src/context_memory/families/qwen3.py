"""Qwen3: queries and keys are normalised head by head before RoPE."""

from __future__ import annotations

from typing import ClassVar

from torch import nn
from transformers import Qwen3Config, Qwen3ForCausalLM

from context_memory.families.base import Family


class Qwen3(Family):
    typed: ClassVar[bool] = True

    @staticmethod
    def tiny() -> nn.Module:
        return Qwen3ForCausalLM(
            Qwen3Config(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
                        num_key_value_heads=2, head_dim=8, max_position_embeddings=256)
        )  # fmt: skip
