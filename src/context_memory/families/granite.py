"""Granite: multipliers on embeddings, scores and residuals (all inside the decoder) and on the logits."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import GraniteConfig, GraniteForCausalLM

from context_memory.families.base import Family


class Granite(Family):
    """The decoder multiplies `inputs_embeds` as well, so embeddings and comp embeddings are handed over unscaled."""

    @staticmethod
    def tiny() -> nn.Module:
        return GraniteForCausalLM(
            GraniteConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
                          num_key_value_heads=2, max_position_embeddings=256, embedding_multiplier=3.0, attention_multiplier=0.2,
                          residual_multiplier=0.5, logits_scaling=2.0)
        )  # fmt: skip

    def head(self, model: Any, hidden: Tensor) -> Tensor:
        return super().head(model, hidden) / model.config.logits_scaling
