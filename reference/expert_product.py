"""The matrix products of experts, whose weights may have another dtype than their input."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import linear

CAST_ROWS = 64  # of a matrix: in float64 and 2880 columns 1.5 MB


def expert_product(weight: Tensor, dtype: torch.dtype) -> Callable[[int, Tensor, Tensor | None], Tensor]:
    """Return (expert, x, bias) -> x @ weight[expert].T + bias, for x of dtype.

    A cast goes through one buffer of a few rows, which stays in the processor's cache (half the time of casting
    the whole matrix), unless autograd may need every cast.
    """
    if weight.dtype == dtype or torch.is_grad_enabled():
        return lambda expert, x, bias: linear(x, weight[expert].to(dtype), bias)
    buffer = torch.empty(min(CAST_ROWS, weight.shape[1]), weight.shape[2], dtype=dtype, device=weight.device)

    def product(expert: int, x: Tensor, bias: Tensor | None) -> Tensor:
        rows = weight[expert].split(CAST_ROWS)
        biases = [None] * len(rows) if bias is None else bias.split(CAST_ROWS)
        casts = (buffer[: len(part)].copy_(part) for part in rows)
        return torch.cat([linear(x, part, b) for part, b in zip(casts, biases, strict=True)], dim=-1)

    return product
