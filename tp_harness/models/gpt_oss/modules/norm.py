"""RMSNorm, replicated on every rank."""

from __future__ import annotations

import torch
from torch import nn

from ....parallel.nxd_attributes import mark
from ....parallel.placements import Placement, Replicate
from ..config import RMS_NORM_EPS, ModelConfig
from .layers import initialise, parameter


class NeuronGPTOSSRMSNorm(nn.Module):
    """x / rms(x) * scale over the last dimension (Zhang and Sennrich 2019, arXiv 1910.07467).

    Statistics in float32 or wider; the product with `scale` (float32) is rounded once, to x's dtype.
    """

    def __init__(self, config: ModelConfig, *, weight_init_value: float | None = None) -> None:
        super().__init__()
        self.scale = parameter(config.hidden_size, dtype=torch.float32)
        mark(self, self.plan(config), 1)
        initialise(self, weight_init_value)

    @staticmethod
    def plan(config: ModelConfig) -> dict[str, Placement]:
        """Parameter name -> placement."""
        return {"scale": Replicate()}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., hidden) in and out, same dtype."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        mean_square = wide.square().mean(dim=-1, keepdim=True)
        return (wide * torch.rsqrt(mean_square + RMS_NORM_EPS) * self.scale).to(x.dtype)
