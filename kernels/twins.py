"""What the torch twins share: the type they compute in."""

from __future__ import annotations

import torch


def wide(x: torch.Tensor) -> torch.Tensor:
    """Return x, of any shape, in the type a twin computes in: float32, or float64 when x is (in an oracle)."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
