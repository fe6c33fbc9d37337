"""Torch twin of the rotary embedding kernel, whose docstring explains the symbols."""

from __future__ import annotations

import torch
from tp_harness.kernels.twins import wide


def rope_torch(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate the two halves of every head by its token's angles.

    x (T, N, D), cos and sin (T, D / 2), to (T, N, D) in the dtype of x.
    """
    a, b = wide(x).chunk(2, dim=-1)
    c, s = wide(cos).unsqueeze(1), wide(sin).unsqueeze(1)
    return torch.cat((a * c - b * s, b * c + a * s), dim=-1).to(x.dtype)
