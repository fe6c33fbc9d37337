"""Torch twin of the attention kernel, whose docstring explains the symbols."""

from __future__ import annotations

import torch
from tp_harness.kernels.twins import wide


def attention_torch(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sinks: torch.Tensor, scale: float, window: int
) -> torch.Tensor:
    """Attend from each query to the keys at its position and before, with one learned sink per head.

    q (B, S, Q, D), k and v (B, S, G, D), sinks (Q,), to (B, S, Q * D) in the dtype of q. `scale` and `window` as in
    `attention`, without its limits of size; sums are float32, or float64 where the inputs are.
    """
    batch, length, heads, _ = q.shape
    repeat = heads // k.shape[2]
    keys, values = (wide(t).repeat_interleave(repeat, dim=2) for t in (k, v))
    scores = torch.einsum("bqnd,bknd->bnqk", wide(q), keys) * scale
    distance = torch.arange(length)[:, None] - torch.arange(length)[None, :]
    hidden = (distance < 0) | (distance >= window) if window > 0 else distance < 0
    scores = scores.masked_fill(hidden, float("-inf"))
    sink = wide(sinks).to(scores.dtype)[None, :, None, None].expand(batch, heads, length, 1)
    weights = torch.cat((scores, sink), dim=-1).softmax(dim=-1)[..., :-1]
    return torch.einsum("bnqk,bknd->bqnd", weights, values).reshape(batch, length, -1).to(q.dtype)
