"""LLaMA 1 to 3.1 and what shares its code (SmolLM2, ...): grouped-query attention, llama3 rope scaling."""

from __future__ import annotations

from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from context_memory.families.base import Family


class Llama(Family):
    @staticmethod
    def tiny() -> nn.Module:
        rope = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64}  # fmt: skip
        return LlamaForCausalLM(
            LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
                        num_key_value_heads=2, max_position_embeddings=256, rope_parameters=rope)
        )  # fmt: skip
