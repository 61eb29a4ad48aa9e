"""A learned rate: how much of fresh comp keys and values enters the slots, said by a trained parameter that looks at them.

a_t = sigmoid(logit(rate) + w . v + b), for every layer, key-value head and slot, with the scheme's own rate and the fresh comp token's
value v, which no rotary embedding has turned. Zeros at first: training starts from the scheme's rule. The first group still weighs 1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LearnedRate(nn.Module):
    """Of all layers; float32 whatever the base model's dtype is."""

    def __init__(self, layers: int, heads: int, n_comp: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(layers, heads, n_comp, size))
        self.bias = nn.Parameter(torch.zeros(layers, heads, n_comp))

    def forward(self, layer: int, values: Tensor, rate: Tensor) -> Tensor:
        """(b, heads, groups, c, size) values, (b, groups) rates -> (b, heads, groups, c) rates. c may be less than n_comp."""
        c = values.shape[3]
        weight, bias = self.weight[layer, :, :c].to(values.dtype), self.bias[layer, :, None, :c].to(values.dtype)
        told = torch.logit(rate.to(values.dtype))[:, None, :, None]
        return torch.sigmoid(told + torch.einsum("bhgcd,hcd->bhgc", values, weight) + bias)
