"""T5 and Flan-T5: an encoder that looks both ways, a decoder that reads what it made, relative positions as a bias on the scores."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn
from transformers import T5Config, T5ForConditionalGeneration

from context_memory.families.base import EncoderDecoder


class T5(EncoderDecoder):
    """Seam: transformers 5.23, `T5Attention._relative_position_bucket`, a static function of distances: T5 itself only asks it for
    the distances of one text without gaps."""

    seat: ClassVar[str] = "layer.0.SelfAttention"
    targets: ClassVar[tuple[str, ...]] = ("q", "k", "v", "o")
    all_linear: ClassVar[tuple[str, ...]] = (*targets, "wi", "wi_0", "wi_1", "wo")
    """The first T5 has one `wi`, Flan-T5 two."""

    @staticmethod
    def tiny() -> nn.Module:
        return T5ForConditionalGeneration(
            T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=3, num_decoder_layers=2, num_heads=4, dropout_rate=0.0,
                     relative_attention_num_buckets=8, relative_attention_max_distance=16, feed_forward_proj="gated-gelu",
                     tie_word_embeddings=False, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0)
        )  # fmt: skip

    def layers(self, model: nn.Module) -> nn.ModuleList:
        return model.encoder.block  # type: ignore[return-value, union-attr]

    def head(self, model: nn.Module, hidden: Tensor) -> Tensor:
        """Where input table and head are one, T5 scales the states first."""
        config = model.config
        return super().head(model, hidden * config.d_model**-0.5 if config.scale_decoder_outputs else hidden)  # type: ignore[union-attr, operator]

    def bias(self, model: nn.Module, apart: Tensor) -> Tensor:
        first = self.layers(model)[0].get_submodule(self.seat)
        bucket = first._relative_position_bucket(  # type: ignore[operator]
            apart, num_buckets=first.relative_attention_num_buckets, max_distance=first.relative_attention_max_distance
        )
        return first.relative_attention_bias(bucket).permute(0, 3, 1, 2)  # type: ignore[operator]
