"""Phi-3 and Phi-4 (4k): q, k, v in one projection, gate and up in another. Their 128k versions have longrope, which is refused."""

from __future__ import annotations

from typing import ClassVar

from torch import nn
from transformers import Phi3Config, Phi3ForCausalLM

from context_memory.families.base import Family


class Phi3(Family):
    targets: ClassVar[tuple[str, ...]] = ("qkv_proj", "o_proj")
    all_linear: ClassVar[tuple[str, ...]] = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")

    @staticmethod
    def tiny() -> nn.Module:
        return Phi3ForCausalLM(
            Phi3Config(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
                       num_key_value_heads=2, max_position_embeddings=256, sliding_window=6, pad_token_id=0)
        )  # fmt: skip
