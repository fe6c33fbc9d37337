"""MXFP4 weights: 4-bit values in blocks of 32 that share an 8-bit exponent (OCP Microscaling Formats 1.0).

A block's 32 values lie in 16 bytes, the first of each pair in the low half; its scale s stands for 2^(s - 127).
"""

from __future__ import annotations

import torch

BIAS = 127
# sign, 2 bits of exponent, 1 of mantissa: E2M1
_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_VALUES = (*_MAGNITUDES, *(-value for value in _MAGNITUDES))


def unpack(blocks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """(..., blocks, 16) bytes and (..., blocks) scales to (..., 32 blocks) bfloat16, which holds every value exactly.

    What exceeds bfloat16 becomes infinite.
    """
    pairs = torch.tensor([[_VALUES[byte & 15], _VALUES[byte >> 4]] for byte in range(256)])
    values = pairs[blocks.int()].flatten(-2)
    return torch.ldexp(values, scales.int()[..., None] - BIAS).bfloat16().flatten(-2)
