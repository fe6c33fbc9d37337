"""The error of a tensor against the oracle: how large it is, and where. Limits are in verdict.py.

Everything is subtracted in float64: a difference of 16-bit numbers would itself be rounded.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import torch

from ..arithmetic.casts import COMPUTED_IN
from ..parallel.on_mesh import OnMesh, holder
from ..parallel.placements import Placement
from ..results.result import Distance, Worst

MASKED = 1e4  # times the usual size of the others: a larger entry may be a mask
MOST = torch.finfo(torch.bfloat16).max  # the largest number of any dtype counts as this one, and infinity too


def as_real(x: torch.Tensor) -> torch.Tensor:
    """Real numbers of any shape: a complex tensor as pairs along a last dimension more, whole numbers in float64."""
    if x.is_complex():
        return torch.view_as_real(x)
    return x if x.dtype in COMPUTED_IN else x.to(torch.float64)


def distance(actual: torch.Tensor, oracle: torch.Tensor) -> Distance:
    """How far `actual` is from `oracle`, in relative L2 norms: over all, and of the worst token.

    A token's error is relative to that token's norm, or the mean norm of tokens where that is larger, so that
    a token that cancels to almost nothing does not decide.

    Args:
        actual: (..., tokens, features), any dtype; complex numbers count as pairs of real ones.
        oracle: same shape, any dtype of the same kind.
    """
    expected = torch.atleast_1d(as_real(oracle).to(torch.float64))
    error = torch.atleast_1d(as_real(actual).to(torch.float64)) - expected
    tokens, token_norms = (x.reshape(-1, x.shape[-1]).norm(dim=-1) for x in (error, expected))
    token_errors = tokens / torch.maximum(token_norms, token_norms.mean())
    return Distance(
        rel_l2=(error.norm() / expected.norm()).item(),
        token=token_errors.max().item(),
        token_index=int(token_errors.argmax()),
        elements=expected.numel(),
    )


def largest(distances: Iterable[Distance]) -> Distance:
    """The first of the distances, at least one, with the largest relative errors of all."""
    first, *_ = distances = tuple(distances)
    return replace(
        first,
        rel_l2=max(d.rel_l2 for d in distances),
        token=max(d.token for d in distances),
    )


def worst_element(name: str, actual: torch.Tensor, oracle: torch.Tensor, tp: int, *, dim: int | None) -> Worst:
    """The element farthest from the oracle.

    Args:
        name: of the tensor.
        actual: the ranks' tensor, joined; any shape, real dtype.
        oracle: same shape, any real dtype.
        tp: number of ranks.
        dim: the dimension that is cut over ranks; None if none is. The element's rank is its first owner, else 0.
    """
    actual, oracle = as_real(actual), as_real(oracle)
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


def held_first(worst: Worst, placement: Placement, shape: Sequence[int]) -> Worst:
    """The worst element of a full tensor of that shape with the first rank that holds it, where a mesh decides that."""
    if not isinstance(placement, OnMesh):
        return worst
    return replace(
        worst, rank=holder(placement, shape, worst.index[: len(shape)])
    )  # a complex number has one index more


def largest_index(x: torch.Tensor) -> tuple[int, ...]:
    """The index of the largest element of a tensor of any shape, one number per dimension.

    By NumPy: torch.unravel_index imports sympy, which takes most of a second.
    """
    return tuple(int(i) for i in np.unravel_index(int(x.argmax()), tuple(x.shape)))


def roll(x: torch.Tensor) -> torch.Tensor:
    """The control of every verdict, which no check may accept: each element moved by one; same shape and dtype."""
    return x.reshape(-1).roll(1).view(x.shape)


def without_constants(oracle: torch.Tensor, *others: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Set mask entries to 0 in all tensors: those that are right in each and far larger than the entries that are not.

    A module may leave masks in its outputs (-inf, torch.finfo(dtype).min, -1e9): beside them no other error would show,
    and there may be more of them than of other entries. An entry is right if it is the oracle's, rounded to its own
    dtype, or at most a unit in the last place off.

    Args:
        oracle: any shape, float64.
        others: same shape, any floating-point dtypes.

    Returns:
        The oracle and the others, same shape: unchanged where the oracle has no entry above MASKED, else in float64.
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
    """A tensor of any shape in float64, clamped to +-MOST, so that masks have the same value in each dtype."""
    wide = x.to(torch.float64)
    if x.dtype == torch.float16:  # whose largest number is far smaller
        wide = torch.where(wide.abs() >= torch.finfo(x.dtype).max, wide * math.inf, wide)
    return wide.clamp(-MOST, MOST)
