"""What Gemma 2 and 3 share: the embedding layer scales its rows, logits may be capped, layers slide a window or do not."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from context_memory.families.base import Family


class Gemma(Family):
    typed: ClassVar[bool] = True

    def scale(self, model: Any) -> float:
        table = model.get_input_embeddings()
        return float(table.embed_scale.to(table.weight.dtype))  # rounded as the layer rounds it

    def head(self, model: Any, hidden: Tensor) -> Tensor:
        logits, cap = super().head(model, hidden), model.config.final_logit_softcapping
        return logits if cap is None else (logits / cap).tanh() * cap
