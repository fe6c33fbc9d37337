"""What the torch twins share: the type they compute in."""

from __future__ import annotations

import torch


def wide(x: torch.Tensor) -> torch.Tensor:
    """Return x in the type a twin computes in: float32, or float64 when that is what came in (an oracle)."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
