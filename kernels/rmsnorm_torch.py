"""Torch twin of the RMSNorm kernel, whose docstring explains the symbols."""

from __future__ import annotations

import torch
from tp_harness.kernels.twins import wide


def rmsnorm_torch(x: torch.Tensor, scale: torch.Tensor, eps: float) -> torch.Tensor:
    """Normalise each row by its root mean square and multiply by a learned scale.

    x (T, H) and scale (H,) to (T, H) in the dtype of x; `eps` is added to the mean square.
    """
    t = wide(x)
    t = t * torch.rsqrt(t.square().mean(dim=-1, keepdim=True) + eps)
    return (t * wide(scale)).to(x.dtype)
