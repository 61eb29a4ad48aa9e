"""cuDNN's attention left out under a mask: its backward pass can return NaN, and it builds a plan for every new shape.

Seam: torch 2.11 to 2.13 on H100 and H200, where cuDNN comes first under a mask. 64 tokens past a multiple of 128, and in a row whose scores
are all very low (Qwen2.5 has such heads), the gradient of the queries is NaN (pytorch/pytorch#196678; seen, and gone without it). And the
shapes of a memory change with every segment that ends, in steps that took four to ten times as long as others; that plans are why is a
guess (docs/log.md, 2026-11-26). The other kernels are right, and need none.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def without_cudnn(device: torch.device) -> Iterator[None]:
    """Attention on this device runs another kernel than cuDNN's."""
    if device.type != "cuda" or not torch.backends.cuda.cudnn_sdp_enabled():
        yield
        return
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(True)
