"""Torch twin of the expert MLP kernel, whose docstring explains the symbols."""

from __future__ import annotations

import torch
from tp_harness.kernels.twins import wide


def expert_mlp_torch(
    x: torch.Tensor,
    affinities: torch.Tensor,
    mlp1_weight: torch.Tensor,
    mlp1_bias: torch.Tensor,
    mlp2_weight: torch.Tensor,
    mlp2_bias: torch.Tensor,
    alpha: float,
    limit: float,
    bias_share: float,
) -> torch.Tensor:
    """Compute this rank's partial sum of the mixture of experts.

    x (T, H), affinities (T, E), mlp1_weight (E, 2 * I, H), mlp1_bias (E, 2 * I), mlp2_weight (E, H, I) and mlp2_bias
    (E, H), to (T, H) in the dtype of x. The numbers as in `expert_mlp`, without its limits of size.
    """
    t = wide(x)
    y = torch.zeros_like(t)
    for e in range(affinities.shape[1]):
        hidden = t @ wide(mlp1_weight[e]).T + wide(mlp1_bias[e])
        gate = hidden[:, 0::2].clamp(max=limit)
        up = hidden[:, 1::2].clamp(min=-limit, max=limit)
        h = gate * torch.sigmoid(alpha * gate) * (up + 1.0)
        down = h @ wide(mlp2_weight[e]).T + bias_share * wide(mlp2_bias[e])
        y = y + wide(affinities[:, e : e + 1]) * down
    return y.to(x.dtype)
