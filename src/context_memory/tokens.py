"""The comp embeddings: a parameter of ours, put where the plan says comp. The vocabulary is not resized.

A plan with fewer comp tokens at a boundary than there are rows uses the first ones (`training.n_comp`).
A row counts as one of the base table: where the embedding layer scales its rows (Gemma), ours are scaled too.
Row k starts as the mean of every n-th row of the base table (k, k + n, ...), as the original does, so that the rows differ.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from context_memory.plan import COMP, Plan
from context_memory.rates import LearnedRate


class CompEmbedding(nn.Module):
    """(n_comp, hidden) trained embeddings, float32 whatever the base model's dtype is."""

    def __init__(self, n_comp: int, table: Tensor, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        rows = [table[k::n_comp].to(torch.float32).mean(0) for k in range(n_comp)]
        self.weight = nn.Parameter(torch.stack(rows) if rows else table.new_zeros(0, table.shape[1], dtype=torch.float32))
        self.rate: LearnedRate | None = None
        """Of a scheme that learns how much of them enters the slots."""

    def forward(self, embedded: Tensor, plan: Plan) -> Tensor:
        """(b, n, hidden) embedded text -> the same with comp tokens put in."""
        where = (plan.tokens.kind == COMP).nonzero(as_tuple=True)
        return embedded.index_put(where, (self.weight[plan.slot[where]] * self.scale).to(embedded.dtype))
