"""cuDNN's attention left out where masked attention is differentiated: its backward pass can return NaN.

Seam: torch 2.11 to 2.13 on H100 and H200, where cuDNN comes first: with a mask, 64 tokens past a multiple of 128, and a row whose scores
are all very low (Qwen2.5 has such heads), the gradient of the queries is NaN (pytorch/pytorch#196678). The other kernels are right, and so
is cuDNN's forward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def without_cudnn(device: torch.device) -> Iterator[None]:
    """Attention on this device runs another kernel than cuDNN's, if it is going to be differentiated."""
    if device.type != "cuda" or not torch.is_grad_enabled() or not torch.backends.cuda.cudnn_sdp_enabled():
        yield
        return
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(True)
