"""Qwen2 and Qwen2.5: biases on q, k, v; some configurations let the upper layers slide a window."""

from __future__ import annotations

from typing import ClassVar

from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from context_memory.families.base import Family


class Qwen2(Family):
    typed: ClassVar[bool] = True

    @staticmethod
    def tiny() -> nn.Module:
        return Qwen2ForCausalLM(
            Qwen2Config(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
                        num_key_value_heads=2, max_position_embeddings=256, use_sliding_window=True, sliding_window=6,
                        max_window_layers=2)
        )  # fmt: skip
