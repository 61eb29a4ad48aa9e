"""Compressed context memory for any Hugging Face language model.

>>> from context_memory import CompressedLM
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from context_memory.encoder_decoder import CompressedSeq2Seq
    from context_memory.model import CompressedLM

__all__ = ["CompressedLM", "CompressedSeq2Seq"]


def __getattr__(name: str) -> Any:
    """Both bring torch and transformers along, which take seconds; `ccm --help` needs neither."""
    if name == "CompressedLM":
        from context_memory.model import CompressedLM

        return CompressedLM
    if name == "CompressedSeq2Seq":
        from context_memory.encoder_decoder import CompressedSeq2Seq

        return CompressedSeq2Seq
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
