"""Where a benchmark's model comes from: one by name, or one of the shape of a larger model with random weights.

Speed and bytes do not depend on what a model says. Shapes are the published ones (8B: Grattafiori et al. 2024, arXiv:2407.21783,
Table 3; 1B: its model card).
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from context_memory import fetch

SHAPES = {
    "llama-3.2-1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32, "head_dim": 64},
    "llama-3.1-8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "head_dim": 128},
}
WORDS = "smollm2-135m-instruct"
"""Whose tokenizer a model with random weights gets."""


def base(name: str, dtype: torch.dtype, device: str | None) -> tuple[Any, Any]:
    """The model called `name` on the device, or one of that shape, and a tokenizer."""
    if name not in SHAPES:
        folder = fetch.get(name)
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval().to(device or "cpu"), AutoTokenizer.from_pretrained(folder)
    config = LlamaConfig(vocab_size=128256, num_key_value_heads=8, max_position_embeddings=131072, **SHAPES[name])  # type: ignore[arg-type]
    config.rope_parameters["rope_theta"] = 500000.0  # type: ignore[index]
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device or "cpu"):
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(fetch.get(WORDS))
