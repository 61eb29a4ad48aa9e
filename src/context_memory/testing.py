"""Tiny random models, for the laws. They prove exactness, not quality."""

from __future__ import annotations

import sys

import torch
from peft import LoraConfig
from torch import nn

from context_memory import plugins
from context_memory.encoder_decoder import CompressedSeq2Seq
from context_memory.families.base import family_of
from context_memory.model import CompressedLM
from context_memory.schemes.base import Scheme


def tiny_lm(
    family: str, scheme: Scheme, *, seed: int = 0, positions: str = "skip", gate: str = "comp",
    dtype: torch.dtype = torch.float64, attn_implementation: str | None = None,
) -> CompressedLM:  # fmt: skip
    """A random model of a family with a random adapter, scaled so that every difference would show.

    `attn_implementation`: sdpa, or the first of those that the family can have.
    """
    torch.manual_seed(seed)
    kind = family_of(family)
    base = kind.tiny().to(dtype).eval()
    attn_implementation = attn_implementation or (kind.attention(base.config) or ("sdpa",))[0]
    lora = LoraConfig(r=4, lora_alpha=16, target_modules=list(kind.targets), init_lora_weights=False) if scheme.n_comp else None
    make = CompressedLM if kind.causal else CompressedSeq2Seq
    lm = make(base, None, scheme, lora=lora, positions=positions, gate=gate, attn_implementation=attn_implementation).eval()
    with torch.no_grad():
        for name, p in lm.named_parameters():
            if p.ndim > 1:
                p.copy_(torch.randn_like(p) * (0.5 if "lora" in name else 0.3))
    return lm.to(dtype)


def tiny_lms(families: list[str] | None = None) -> list[tuple[str, Scheme]]:
    """Every decoder-only family with every variant of every scheme that has a mask, found by folder."""
    schemes = [v for key in plugins.keys("schemes") for v in plugins.find("schemes", key).variants()]  # type: ignore[attr-defined]
    causal = [key for key in plugins.keys("families") if plugins.find("families", key).causal]  # type: ignore[attr-defined]
    return [(family, scheme) for family in families or causal for scheme in schemes if scheme.static]


def parameters_of(lm: nn.Module, word: str) -> list[nn.Parameter]:
    """Trainable parameters whose name holds `word`."""
    return [p for n, p in lm.named_parameters() if p.requires_grad and word in n]


if __name__ == "__main__":
    from context_memory import golden

    if sys.argv[1:2] != ["golden"]:
        sys.exit("usage: python -m context_memory.testing golden DIR [--only PATTERN]")
    sys.exit(golden.main(sys.argv[2:]))
