"""Rotary position embedding with YaRN scaling, in plain torch."""

import math
from typing import TypeAlias

import torch
from torch import Tensor

Device: TypeAlias = torch.device | None


class RotaryEmbedding(torch.nn.Module):
    """Rotary embedding, first half of head_dim against second half, with YaRN scaling (arXiv 2309.00071).

    A scaling_factor <= 1 is plain RoPE. `dtype` belongs to the public signature and has no effect: angles are
    float64, and cos and sin take the dtype of what they rotate.

    Raises:
        ValueError: the scaling's bounds do not lie within the head's pairs; gives all numbers.
    """

    def __init__(  # noqa: PLR0917 - the public signature
        self,
        head_dim: int,
        base: float,
        dtype: torch.dtype,
        initial_context_length: int = 4096,
        scaling_factor: float = 1.0,
        ntk_alpha: float = 1.0,
        ntk_beta: float = 32.0,
        device: Device = None,
    ) -> None:
        super().__init__()
        # plain float64 values on the CPU: buffers would follow `.to(bfloat16)` and a meta device
        pair = torch.arange(head_dim // 2, dtype=torch.float64, device="cpu")
        self.inv_freq, self.concentration = base ** (-2 * pair / head_dim), 1.0
        if scaling_factor > 1.0:
            low, high = _yarn_bounds(head_dim, base, initial_context_length, ntk_alpha, ntk_beta)
            # NTK-by-parts (section 3.2): fast pairs (0) keep their frequency, slow ones (1) are interpolated
            slow = ((pair - low) / (high - low)).clamp(0, 1)
            self.inv_freq = self.inv_freq * (1 - slow) + self.inv_freq / scaling_factor * slow
            self.concentration = 0.1 * math.log(scaling_factor) + 1.0  # section 3.4, as a factor on q and k

    def cos_sin(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Map integer positions of any shape to float64 tables (*positions.shape, head_dim / 2)."""
        # A float32 angle is off by about angle * 6e-8: at position 100,000 that is 6e-3, more than bf16
        # resolves, and the reference would be wrong.
        angle = positions.to(torch.float64)[..., None] * self.inv_freq.to(positions.device)
        return angle.cos() * self.concentration, angle.sin() * self.concentration

    def forward(self, query: Tensor, key: Tensor, positions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Rotate query and key, each (*L, heads..., head_dim); shapes and dtypes are kept.

        The shape of `positions` is L, which tells token dimensions from head dimensions (any number). Without
        positions L is (n_tokens,), as in the public model, and they are 0, 1, ...

        Raises:
            ValueError: the first dimensions of query or key are not L.
        """
        if positions is None:
            positions = torch.arange(query.shape[0], device=query.device)
        cos, sin = self.cos_sin(positions)
        return _rotate(query, cos, sin), _rotate(key, cos, sin)


def _yarn_bounds(dim: int, base: float, context: int, alpha: float, beta: float) -> tuple[float, float]:
    """Return the (fractional) pairs that turn beta and alpha times within the initial context."""
    low, high = (dim / 2 * math.log(context / (2 * math.pi * n)) / math.log(base) for n in (beta, alpha))
    if not 0 < low < high < dim / 2 - 1:
        given = f"head_dim={dim} {base=} initial_context_length={context} ntk_alpha={alpha} ntk_beta={beta}"
        raise ValueError(f"YaRN needs 0 < low < high < head_dim / 2 - 1: {low=:.3f} {high=:.3f} from {given}")
    return low, high


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x (*L, heads..., D) by tables (*L, D / 2), in x.dtype."""
    token_dims = cos.shape[:-1]
    if x.shape[: len(token_dims)] != token_dims:
        raise ValueError(f"positions {tuple(token_dims)} are not the first dimensions of {tuple(x.shape)}")
    table = (*token_dims, *(1 for _ in x.shape[len(token_dims) : -1]), -1)
    cos, sin = cos.view(table).to(x.dtype), sin.view(table).to(x.dtype)
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat((x1 * cos - x2 * sin, x2 * cos + x1 * sin), dim=-1)
