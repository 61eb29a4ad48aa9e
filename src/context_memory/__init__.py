"""Compressed context memory for any Hugging Face language model.

>>> from context_memory import CompressedLM
"""

from context_memory.model import CompressedLM

__all__ = ["CompressedLM"]
