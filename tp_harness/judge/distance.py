"""Numbers about two tensors: how far one is from the oracle, and where. No limits, no opinions.

Everything is subtracted in float64: a difference of 16-bit numbers would itself be rounded.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch

from ..results.result import Distance, Worst

MASKED = 1e4  # times the usual size of the others: an entry that is larger may be a mask
MOST = torch.finfo(torch.bfloat16).max  # the largest number of any dtype counts as this one, and infinity too


def distance(actual: torch.Tensor, oracle: torch.Tensor, blocks: int) -> Distance:
    """How far `actual` is from `oracle`; both of the same shape, (..., tokens, features).

    A token's error is relative to that token's norm, or the mean norm of tokens where that is larger, so that
    a token that cancels to almost nothing does not decide; the same for blocks. A block is one rank's share of the
    features (`blocks` of them where that divides, otherwise one).
    """
    expected = torch.atleast_1d(oracle.to(torch.float64))
    error = torch.atleast_1d(actual.to(torch.float64)) - expected
    tokens, token_norms = (x.reshape(-1, x.shape[-1]).norm(dim=-1) for x in (error, expected))
    token_errors = tokens / torch.maximum(token_norms, token_norms.mean())
    blocks = blocks if expected.shape[-1] % blocks == 0 else 1
    block_norms = _block_norms(expected, blocks)
    block_errors = _block_norms(error, blocks) / torch.maximum(block_norms, block_norms.mean())
    return Distance(
        rel_l2=(error.norm() / expected.norm()).item(),
        token=token_errors.max().item(),
        token_index=int(token_errors.argmax()),
        block=block_errors.max().item(),
        block_index=int(block_errors.argmax()),
        elements=expected.numel(),
    )


def largest(distances: Iterable[Distance]) -> Distance:
    """The first of the distances, with the largest errors of all."""
    first, *_ = distances = tuple(distances)
    return replace(
        first,
        rel_l2=max(d.rel_l2 for d in distances),
        token=max(d.token for d in distances),
        block=max(d.block for d in distances),
    )


def worst_element(name: str, actual: torch.Tensor, oracle: torch.Tensor, tp: int, *, dim: int | None) -> Worst:
    """The element farthest from the oracle. Its rank is the first owner where `dim` is cut over ranks, else 0."""
    error = (bounded(actual) - bounded(oracle)).abs()
    index = largest_index(error)
    parts = 1 if dim is None else min(tp, error.shape[dim])  # fewer parts than ranks: neighbours hold replicas
    rank = 0 if dim is None else index[dim] * parts // error.shape[dim] * (tp // parts)
    return Worst(
        tensor=name,
        index=index,
        rank=rank,
        actual=actual[index].item(),
        expected=oracle[index].item(),
    )


def largest_index(x: torch.Tensor) -> tuple[int, ...]:
    """Where the largest element is. By NumPy: torch.unravel_index imports sympy, most of a second."""
    return tuple(int(i) for i in np.unravel_index(int(x.argmax()), tuple(x.shape)))


def roll(x: torch.Tensor) -> torch.Tensor:
    """The control: every element in its neighbour's place, which no check may accept."""
    return x.reshape(-1).roll(1).view(x.shape)


def without_constants(oracle: torch.Tensor, *others: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The tensors with 0 in all of them where each is right and far larger than the entries that are not.

    Such are the masks that a module leaves in its outputs (-inf, torch.finfo(dtype).min, -1e9): beside them no other
    error would be seen, and there may be more of them than of other entries. Right is what rounds to the same number
    of its dtype, or to the next one.
    """
    if not (oracle.abs() > MASKED).any():
        return (oracle, *others)
    right = bounded(oracle)
    same = torch.stack([_rounded_alike(x, right) for x in others]).all(dim=0)
    size = right[right.abs() < MOST if same.all() else ~same].abs()
    constant = same & (right.abs() > MASKED * max(1.0, size.median().item() if size.numel() else 0.0))
    return tuple(bounded(x).masked_fill(constant, 0.0) for x in (oracle, *others))


def _rounded_alike(x: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Where `x` is `right`, in float64, rounded to the dtype of `x`, or at most a unit in the last place off."""
    rounded = bounded(right.to(x.dtype))
    return (bounded(x) - rounded).abs() <= torch.finfo(x.dtype).eps * rounded.abs()


def bounded(x: torch.Tensor) -> torch.Tensor:
    """The tensor in float64, where what masks has the same value in each dtype."""
    return x.to(torch.float64).clamp(-MOST, MOST)


def _block_norms(x: torch.Tensor, blocks: int) -> torch.Tensor:
    return x.reshape(-1, blocks, x.shape[-1] // blocks).norm(dim=(0, 2))
