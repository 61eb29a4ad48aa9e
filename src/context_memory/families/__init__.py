"""Facts about a Hugging Face architecture: one file a model type."""
