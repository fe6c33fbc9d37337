"""Rotary position embedding with YaRN scaling, for the query and KV heads a rank holds."""

from __future__ import annotations

import math

import torch
from torch import nn

from ....parallel.placements import Placement
from ..config import InferenceConfig, ModelConfig


class NeuronGPTOSSRotaryEmbedding(nn.Module):
    """Rotates the two halves of each head by an angle that grows with the position.

    Frequencies follow YaRN (Peng et al. 2023, arXiv 2309.00071): "NTK-by-parts" interpolates only the slow
    dimensions, and cos and sin carry the concentration 0.1 ln(s) + 1. The table [positions, head_dim / 2] is
    made on the host in float64 and stored in float32 (in float64 for a model in it): float32 angles would lose digits
    as positions grow, and NeuronCores have no float64. Being no weight, it is made on the CPU whatever the default
    device. It holds `max_positions` positions, by default twice the configured sequence.
    """

    cos: torch.Tensor
    sin: torch.Tensor

    def __init__(self, config: InferenceConfig, *, max_positions: int | None = None) -> None:
        super().__init__()
        count = max_positions or 2 * config.neuron_config.seq_len
        angles = torch.arange(count, dtype=torch.float64, device="cpu")[:, None] * inverse_frequencies(config)
        scale = concentration(config)
        stored = torch.promote_types(config.neuron_config.torch_dtype, torch.float32)
        self.register_buffer("cos", (angles.cos() * scale).to(stored), persistent=False)
        self.register_buffer("sin", (angles.sin() * scale).to(stored), persistent=False)

    @staticmethod
    def plan(config: ModelConfig) -> dict[str, Placement]:
        """No parameters."""
        return {}

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, position_ids: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotate query (batch, seq, heads, head_dim) and key (batch, seq, kv_heads, head_dim); same shapes, dtypes out.

        Absent position_ids, (batch, seq) int64, count from 0.
        """
        if position_ids is None:
            position_ids = torch.arange(query.shape[1], device=query.device)[None]
        cos = self.cos[position_ids][:, :, None]
        sin = self.sin[position_ids][:, :, None]
        return self._rotate(query, cos, sin), self._rotate(key, cos, sin)

    def _rotate(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """Rotate the pairs (x[i], x[i + head_dim / 2]); cos and sin are rounded to x's dtype first."""
        cos, sin = cos.to(x.dtype), sin.to(x.dtype)
        half = x.shape[-1] // 2
        first, second = x[..., :half], x[..., half:]
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def concentration(config: ModelConfig) -> float:
    """YaRN's factor on cos and sin, 0.1 ln(scaling factor) + 1 (arXiv 2309.00071, section 3.4)."""
    factor = config.rope_scaling_factor
    return 0.1 * math.log(factor) + 1.0 if factor > 1.0 else 1.0


def inverse_frequencies(config: ModelConfig) -> torch.Tensor:
    """Radians per position of a head's pairs, of shape (head_dim / 2,), float64 (arXiv 2309.00071, section 3.2).

    A pair that turns more than beta times within the original context keeps its frequency, one that turns
    less than alpha times is slowed by the scaling factor, and a linear ramp joins them.
    """
    half = config.head_dim // 2
    exponent = torch.arange(half, dtype=torch.float64, device="cpu") / half
    base = config.rope_theta**-exponent
    if config.rope_scaling_factor <= 1.0:
        return base
    low, high = (_pair_turning(config, turns) for turns in (config.rope_ntk_beta, config.rope_ntk_alpha))
    slowed = ((torch.arange(half, dtype=torch.float64, device="cpu") - low) / (high - low)).clamp(0, 1)
    return base * (1 - slowed) + base / config.rope_scaling_factor * slowed


def _pair_turning(config: ModelConfig, turns: float) -> float:
    """The (fractional) pair that makes that many turns within the original context."""
    positions_per_radian = config.initial_context_length / (turns * 2 * math.pi)
    return config.head_dim / 2 * math.log(positions_per_radian) / math.log(config.rope_theta)
