"""Torch twins of the linear kernels."""

from __future__ import annotations

import torch
from tp_harness.kernels.twins import wide


def linear_torch(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Compute x @ weight.T + bias."""
    return (wide(x) @ wide(weight).T + wide(bias)).to(x.dtype)


def linear_no_bias_torch(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Compute x @ weight.T."""
    return (wide(x) @ wide(weight).T).to(x.dtype)
