"""The few facts about a Hugging Face architecture that we need. File name = `config.model_type`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from context_memory import plugins
from context_memory.errors import InputError, UnknownFamily
from context_memory.plan import Tokens

FIXED_ROPE = ("default", "linear", "llama3", "yarn")
"""Rope types whose frequencies do not change with the length of the text."""
PAGE = "docs/families.md"
"""How a family is added."""


def family_of(model_type: str) -> Family:
    """The family of `config.model_type`.

    Raises:
        UnknownFamily: (a UserError and LookupError) there is no file of that name.
    """
    if model_type in (have := plugins.keys("families")):
        return plugins.make("families", model_type)  # type: ignore[return-value]
    known, text = ", ".join(have), wrapped(model_type)
    if text == "" or text in have:
        which = f"{text}, which is known here" if text else f"if text_config in config.json has a model_type known here ({known})"
        raise UnknownFamily(f"architecture '{model_type}' is a text model and more; take the text model out, {which}: {PAGE} shows how.")
    raise UnknownFamily(
        f"architecture '{model_type}' is not known here; known: {known}. A new one is one small file, families/{model_type}.py: "
        f"{PAGE} shows how."
    )


def wrapped(model_type: str) -> str | None:
    """The text model of an architecture that adds images or sound to one: "" if any can be it, None if there is none.

    `sub_configs` of transformers 5 has the class of every part: AutoConfig, without a model_type of its own, for any.
    """
    from transformers import CONFIG_MAPPING

    parts = CONFIG_MAPPING[model_type].sub_configs if model_type in CONFIG_MAPPING else {}
    return getattr(parts["text_config"], "model_type", "") if "text_config" in parts else None


def fitting(config: Any, implementation: str) -> Family:
    """The family of a configuration that a memory can be exact with, computed by this attention implementation.

    Raises:
        UnknownFamily: (a LookupError) an architecture that has no family file.
        ValueError: a configuration or an implementation that does not fit.
    """
    family = family_of(config.model_type)
    family.check(config)
    if (able := family.attention(config)) is not None and implementation not in able:
        raise InputError(
            f"attn_implementation={implementation} leaves out a part of {config.model_type}'s attention; use "
            f"attn_implementation={able[0]} (or {', '.join(able[1:])})."
        )
    return family


class Family(ABC):
    """A family of models: decoder-only ones, unless it says `causal = False`."""

    plugin: ClassVar[bool] = True
    causal: ClassVar[bool] = True
    streams: ClassVar[bool] = True
    """Every layer turns its keys, and as `angles` says: a stream turns those that it keeps to where they stand now."""
    seat: ClassVar[str] = "self_attn"
    """The child of a layer that gets the keyword arguments."""
    targets: ClassVar[tuple[str, ...]] = ("q_proj", "k_proj", "v_proj", "o_proj")
    """Modules that get the compression LoRA by default."""
    all_linear: ClassVar[tuple[str, ...]] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    """Modules that a task LoRA may take (`targets=all`)."""

    @staticmethod
    @abstractmethod
    def tiny() -> nn.Module:
        """A random causal model of a few thousand parameters: grouped-query attention, 3 layers, vocabulary 64."""

    def decoder(self, model: nn.Module) -> nn.Module:
        """The model below the head: embeddings in, last hidden states out."""
        return model.model  # type: ignore[return-value]

    def layers(self, model: nn.Module) -> nn.ModuleList:
        """The decoder layers."""
        return self.decoder(model).layers  # type: ignore[return-value]

    def embed(self, model: nn.Module, ids: Tensor) -> Tensor:
        """(b, n) -> (b, n, hidden), as the decoder would itself."""
        return model.get_input_embeddings()(ids)  # type: ignore[operator]

    def scale(self, model: nn.Module) -> float:
        """What the embedding layer itself multiplies its rows by: comp embeddings are rows like any other."""
        return 1.0

    def head(self, model: nn.Module, hidden: Tensor) -> Tensor:
        """(..., hidden) -> (..., vocabulary) logits."""
        return model.lm_head(hidden)  # type: ignore[operator]

    def attention(self, config: Any) -> tuple[str, ...] | None:
        """The attention implementations that compute what this configuration says; None for all of them."""
        return None

    def inner(self, config: Any) -> int:
        """Width of the feed-forward layers."""
        return int(config.intermediate_size)

    def must_be_causal(self, what: str) -> None:
        """Raises UserError for an encoder-decoder, which `what` is not made for."""
        if not self.causal:
            raise InputError(f"{what} is not there for encoder-decoders, which write an answer in one piece; use a decoder-only model.")

    def angles(self, model: nn.Module, positions: Tensor, kind: str | None = None) -> tuple[Tensor, Tensor]:
        """(b, n) positions -> (b, n, rotated size) cosines and sines with which layers of this type turn keys, in float32 or wider.

        Pair i of a head is its numbers i and i + (rotated size) / 2; numbers behind the rotated ones stay as they are.
        """
        rotary: Any = self.decoder(model).rotary_emb
        like = torch.empty(0, dtype=torch.promote_types(next(model.parameters()).dtype, torch.float32), device=positions.device)
        cos, sin = rotary(like, positions, kind) if hasattr(rotary, "layer_types") else rotary(like, positions)
        return cos.to(like.dtype), sin.to(like.dtype)  # some always give float32

    def check(self, config: Any) -> None:
        """Raises ValueError for a configuration that a memory cannot be exact with."""
        if getattr(config, "use_bidirectional_attention", False):
            raise InputError("this model attends to later tokens too (use_bidirectional_attention): it has no past to remember.")
        rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
        kinds = [rope] if not any(isinstance(v, dict) for v in rope.values()) else [v for v in rope.values() if isinstance(v, dict)]
        for kind in kinds:
            name = kind.get("rope_type", "default")
            if name not in FIXED_ROPE:
                raise InputError(
                    f"rope type '{name}' changes its frequencies with the length of the text, so keys that are kept would go stale; "
                    f"supported: {', '.join(FIXED_ROPE)}."
                )

    def window(self, config: Any, layer_type: str | None) -> int | None:
        """The sliding window of a layer of this type, in positions; None for none."""
        if layer_type is None or layer_type == "sliding_attention":
            return getattr(config, "sliding_window", None)
        return None

    def windowed(self, config: Any) -> bool:
        """Whether any layer slides a window."""
        kinds: list[str | None] = [*(getattr(config, "layer_types", None) or [])] if self.typed else [None]
        return any(self.window(config, kind) is not None for kind in kinds)

    def masks(self, mask: Tensor, q: Tokens, k: Tokens, config: Any) -> dict[str | None, Tensor]:
        """One mask a layer type, with the sliding window put in by position.

        Comp tokens, slots and the pins of closed segments are memory, not neighbours: the window does not apply to them.
        The key of the dict is None where the architecture takes a single mask.
        """
        types = getattr(config, "layer_types", None) if self.typed else None
        out: dict[str | None, Tensor] = {}
        for kind in sorted(set(types)) if types else [None]:
            window = self.window(config, kind)
            near = None if window is None else (q.position - k.position < window) | ~k.raw | (k.pin & (k.segment < q.segment)) | ~q.raw
            out[kind] = mask if near is None else mask & near
        return out

    typed: ClassVar[bool] = False
    """Whether the decoder takes one mask a layer type."""


class EncoderDecoder(Family):
    """A family of encoder-decoders. The comp tokens live in the encoder: `layers` are the encoder's."""

    causal: ClassVar[bool] = False

    def inner(self, config: Any) -> int:
        return int(config.d_ff)

    @abstractmethod
    def bias(self, model: nn.Module, apart: Tensor) -> Tensor:
        """(b, q, k) position of the key minus position of the query -> (b, heads, q, k), added to the scores of every encoder layer."""
