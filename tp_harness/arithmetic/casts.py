"""Casts to the dtype of a run, for the tensors that it concerns.

`nn.Module.to(dtype)` makes real numbers of complex ones, on both sides of a comparison alike: a conjugated rotation
would become the right one. Here a cast changes how many digits a number has, and never what kind it is.
"""

from __future__ import annotations

import torch
from torch import nn

from ..libraries.torch_private import apply_to_tensors

COMPUTED_IN = (torch.float64, torch.float32, torch.bfloat16, torch.float16)  # float8 is how numbers are stored


def computable(x: torch.Tensor) -> torch.Tensor:
    """The same numbers, any shape, in a dtype that torch computes with: float8 becomes float64, uint16 and up int64."""
    if x.dtype in (torch.uint16, torch.uint32, torch.uint64):
        return x.to(torch.int64)
    return x.to(torch.float64) if x.is_floating_point() and x.dtype not in COMPUTED_IN else x


def cast(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Cast the module's parameters and buffers of any shape in place, as `cast_tensor`, and return the module."""
    return apply_to_tensors(module, lambda x: cast_tensor(x, dtype))


def cast_tensor(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Cast a tensor of any shape to `dtype`; the shape stays.

    A complex tensor becomes complex128 for float64 and complex64 for all others; what is no floating-point number of 16
    bits or more (integers, booleans, float8) stays as it is.
    """
    if x.is_complex():
        return x.to(torch.complex128 if dtype == torch.float64 else torch.complex64)
    return x.to(dtype) if x.dtype in COMPUTED_IN else x
