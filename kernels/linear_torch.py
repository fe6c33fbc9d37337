"""Torch twins of the linear kernels, whose docstrings explain the symbols."""

from __future__ import annotations

import torch
from tp_harness.kernels.twins import wide


def linear_torch(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Compute x @ weight.T + bias: x (T, K), weight (N, K), bias (N,) to (T, N) in the dtype of x."""
    return (wide(x) @ wide(weight).T + wide(bias)).to(x.dtype)


def linear_no_bias_torch(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Compute x @ weight.T: x (T, K), weight (N, K) to (T, N) in the dtype of x."""
    return (wide(x) @ wide(weight).T).to(x.dtype)
