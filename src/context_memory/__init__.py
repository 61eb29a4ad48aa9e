"""Compressed context memory for any Hugging Face language model."""
