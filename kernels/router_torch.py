"""Torch twin of the router kernel, whose docstring explains the symbols."""

from __future__ import annotations

import torch
from tp_harness.kernels.twins import wide


def router_torch(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, top_k: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Choose top_k experts per token and weight them by the softmax over their logits.

    Args:
        x, weight, bias: (T, H), (E, H) and (E,), float32, bfloat16 or float64.
        top_k: how many experts a token gets.

    Returns:
        As `choose_torch`, and the logits (T, E) in the dtype of x.
    """
    logits = (wide(x) @ wide(weight).T + wide(bias)).to(x.dtype)
    experts, weights, affinities = choose_torch(logits, top_k)
    return experts, weights, affinities, logits


def choose_torch(logits: torch.Tensor, top_k: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return experts (T, top_k) int64, weights (T, top_k) and affinities (T, E) for logits (T, E).

    Weights and affinities are float32, or float64 where the logits are. A stable sort, not topk: of equal logits the
    lower expert number comes first.
    """
    values, experts = wide(logits).sort(dim=-1, descending=True, stable=True)
    experts, weights = experts[:, :top_k], values[:, :top_k].softmax(dim=-1)
    affinities = torch.zeros_like(wide(logits)).scatter_(1, experts, weights)
    return experts, weights, affinities
