"""Rules of operations that decide by the order of values: the float64 shadows decide, and the chosen residue goes on.

Two values with the same residues are the same number; between them nothing is decided.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from ..libraries.torch_private import named_arguments, tree_map
from .elementwise import dims_of
from .mode import ExactMode, result_dtype
from .operations import aten, named, rule
from .residues import numbers
from .residues.field import Numbers
from .seen import TIE

_SAMPLED = 1 << 12  # magnitudes that say what is usual
_MOST = 1e300  # anything finite is far from an infinite number


def decided(mode: ExactMode, kind: str, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Note decisions between numbers a and b, aligned and of one shape; returns where they are the same number, bool.

    A margin is relative to the larger of the two, or to the usual size of all where that is more.
    """
    x, y = a[0], b[0]
    size = torch.maximum(x.abs(), y.abs())
    margins = (x - y).abs_().div_(size.clamp(min=_usual(size), max=_MOST))
    if not margins.numel() or float(margins.min()) > TIE:  # which that of nan is not
        mode.seen.decide(kind, margins)
        return torch.zeros(margins.shape, dtype=torch.bool)
    one = (mode.field.same(a, b) & ~(margins > TIE)) | (size.isinf() & (x == y))
    mode.seen.decide(kind, margins[~one])
    return one


def _usual(size: torch.Tensor) -> float:
    """The lower quartile of some thousand magnitudes, without zeros and infinite ones: a mask's -1e9 is not usual."""
    some = size.reshape(-1)[:: max(1, size.numel() // _SAMPLED)]
    some = some[(some > 0) & (some < math.inf)]
    return float(some.kthvalue(len(some) // 4 + 1).values) if len(some) else 1.0


def _pair(a: torch.Tensor, b: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.broadcast_tensors(*numbers.aligned(a, b)))


@rule(aten.gt, aten.lt, aten.ge, aten.le, aten.eq, aten.ne)
def _compare(mode: ExactMode, func: Any, a: Any, b: Any) -> torch.Tensor:
    x, y = _pair(mode.number(a), mode.number(b))
    one = decided(mode, func.overloadpacket.__name__, x, y)
    return func.overloadpacket(torch.where(one, y[0], x[0]), y[0])


@rule(*named("isnan isinf isfinite isposinf isneginf"))
def _finite(mode: ExactMode, func: Any, a: torch.Tensor) -> torch.Tensor:
    return func(mode.memory.shadow(a))


@rule(
    *named("signbit logical_not logical_and logical_or logical_xor any all is_nonzero nonzero count_nonzero argwhere")
)
def _of_zero(mode: ExactMode, func: Any, *args: Any, **kwargs: Any) -> Any:
    """These ask which numbers are 0."""
    return func(*(against_zero(mode, x) for x in args), **kwargs)


def against_zero(mode: ExactMode, x: Any) -> Any:
    """The shadow of a tensor of any shape whose numbers are compared with 0, and are 0 where their residues are."""
    if not mode.memory.holds(x):
        return x
    rows = mode.number(x)
    return rows[0].masked_fill(decided(mode, "sign", rows, torch.zeros_like(rows)), 0.0)


@rule(*named("equal isclose allclose bucketize searchsorted"))
def _undecided(mode: ExactMode, func: Any, *args: Any, **kwargs: Any) -> Any:
    mode.seen.escape(f"{func} decides, and has no margin")
    shadows, named_ = tree_map(mode.memory.shadow, (args, kwargs))
    return func(*shadows, **named_)


@rule(aten.sign, aten.sgn)
def _sign(mode: ExactMode, func: Any, a: torch.Tensor) -> torch.Tensor:
    return mode.new(mode.field.constants(against_zero(mode, a).sign()), a.dtype)


@rule(aten.abs)
def _abs(mode: ExactMode, func: Any, a: torch.Tensor) -> torch.Tensor:
    x = mode.number(a)
    decided(mode, "sign", x, torch.zeros_like(x))
    return mode.new(torch.where(x[0] < 0, -x, x), a.dtype)


@rule(aten.relu)
def _relu(mode: ExactMode, func: Any, a: torch.Tensor) -> torch.Tensor:
    return _clamped(mode, a, 0.0, None, "relu")


@rule(aten.clamp, aten.clamp_min, aten.clamp_max, aten.hardtanh)
def _clamp(mode: ExactMode, func: Any, a: torch.Tensor, min: Any = None, max: Any = None) -> torch.Tensor:
    low, high = (None, min) if func.overloadpacket is aten.clamp_max else (min, max)
    return _clamped(mode, a, low, high, "clamp")


def _clamped(mode: ExactMode, a: torch.Tensor, low: Any, high: Any, kind: str) -> torch.Tensor:
    x = mode.number(a)
    for bound, name in ((low, "below"), (high, "above")):
        if bound is not None:
            at = _pair(x, mode.number(bound))
            hit = at[0][0] < at[1][0] if name == "below" else at[0][0] > at[1][0]
            decided(mode, kind, *at)
            mode.seen.count(kind, **{name: int(hit.sum()), "all": hit.numel()})
            x = torch.where(hit, at[1], at[0])
    return mode.new(x, a.dtype)


@rule(aten.maximum, aten.minimum, aten.fmax, aten.fmin)
def _maximum(mode: ExactMode, func: Any, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    x, y = _pair(mode.number(a), mode.number(b))
    decided(mode, func.overloadpacket.__name__, x, y)
    second = y[0] > x[0] if func.overloadpacket in (aten.maximum, aten.fmax) else y[0] < x[0]
    return mode.new(torch.where(second, y, x), result_dtype((a, b)))


@rule(aten.threshold_backward)
def _threshold_backward(mode: ExactMode, func: Any, grad: Any, a: Any, threshold: float) -> torch.Tensor:
    x, y = _pair(mode.number(a), mode.number(threshold))
    on = (x[0] > y[0]) & ~decided(mode, "relu", x, y)
    return mode.new(torch.where(on, mode.number(grad), 0.0), grad.dtype)


@rule(aten.max.dim, aten.min.dim, aten.cummax, aten.cummin, aten.mode)
def _max_dim(mode: ExactMode, func: Any, a: torch.Tensor, dim: int = -1, keepdim: bool = False) -> Any:
    if func.overloadpacket in (aten.cummax, aten.cummin, aten.mode):
        return mode.lose(func, (a, dim), {})
    values, index = extreme(mode, mode.number(a), dim, largest=func.overloadpacket is aten.max)
    at = dim % max(1, a.dim())
    if not keepdim and a.dim():
        values, index = values.squeeze(at + 1), index.squeeze(at)
    return mode.new(values, a.dtype), index


@rule(aten.amax, aten.amin, aten.max.default, aten.min.default)
def _amax(mode: ExactMode, func: Any, a: torch.Tensor, dim: Any = None, keepdim: bool = False) -> torch.Tensor:
    x = mode.number(a)
    largest = func.overloadpacket in (aten.amax, aten.max)
    dims = sorted({d % a.dim() for d in dims_of(dim)} or range(a.dim()), reverse=True)
    for at in dims:
        x = extreme(mode, x, at, largest=largest)[0]
        x = x if keepdim else x.squeeze(at + 1)
    return mode.new(x, a.dtype)


@rule(aten.argmax, aten.argmin)
def _argmax(mode: ExactMode, func: Any, a: torch.Tensor, dim: Any = None, keepdim: bool = False) -> torch.Tensor:
    x = mode.number(a)
    x = x.reshape(x.shape[0], -1) if dim is None else x
    index = extreme(mode, x, 0 if dim is None else dim, largest=func.overloadpacket is aten.argmax)[1]
    if dim is None:
        return index.view([1] * a.dim() if keepdim else [])
    return index if keepdim else index.squeeze(dim)


def extreme(mode: ExactMode, x: Numbers, dim: int, *, largest: bool) -> tuple[Numbers, torch.Tensor]:
    """The largest or smallest numbers along a dimension, which is kept, and their indices, of the same shape without
    the rows; of equal ones the first.
    """
    if x.dim() == 1:
        return x, torch.zeros((), dtype=torch.int64)
    index = (x[0].argmax if largest else x[0].argmin)(dim, keepdim=True)
    best = numbers.gather(x, dim, index).expand(x.shape)
    one = decided(mode, "max" if largest else "min", x, best).scatter(dim, index, True)  # also where it is unknown
    index = one.to(torch.uint8).argmax(dim, keepdim=True)
    return numbers.gather(x, dim, index), index


@rule(aten.topk)
def _topk(
    mode: ExactMode, func: Any, a: torch.Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True
) -> Any:
    """The order among the chosen decides nothing but their places; the gap to the first that is not chosen does."""
    x = mode.number(a)
    index = (x[0] if largest else -x[0]).topk(min(k + 1, a.shape[dim]), dim=dim).indices
    _ordered(mode, "topk", x, dim, index)
    _no_tie(mode, x, dim, index, k)
    index = index.narrow(dim, 0, k).clone()
    mode.seen.count("topk", chosen=int(index.unique().numel()), all=a.shape[dim])
    return mode.new(numbers.gather(x, dim, index), a.dtype), index


@rule(aten.sort, aten.sort.stable, aten.argsort, aten.msort)
def _sort(mode: ExactMode, func: Any, a: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    x = mode.number(a)
    named = named_arguments(func, (a, *args), kwargs)
    dim = named.get("dim", 0 if func.overloadpacket is aten.msort else -1)
    index = x[0].sort(dim=dim, descending=named.get("descending", False), stable=True).indices
    _ordered(mode, "sort", x, dim, index)
    if func.overloadpacket is aten.argsort:
        return index
    values = mode.new(numbers.gather(x, dim, index), a.dtype)
    return values if func.overloadpacket is aten.msort else (values, index)


def _ordered(mode: ExactMode, kind: str, x: torch.Tensor, dim: int, index: torch.Tensor) -> None:
    count = index.shape[dim]
    if count > 1:
        ranked = numbers.gather(x, dim, index)
        at = dim % (x.dim() - 1) + 1
        decided(mode, kind, ranked.narrow(at, 0, count - 1), ranked.narrow(at, 1, count - 1))


def _no_tie(mode: ExactMode, x: torch.Tensor, dim: int, index: torch.Tensor, k: int) -> None:
    """Which of several equal numbers is the last that is chosen, nothing says: a tie."""
    if 0 < k < index.shape[dim]:
        last, next_ = (numbers.gather(x, dim, index.narrow(dim, at, 1)) for at in (k - 1, k))
        if mode.field.same(last, next_).any():
            mode.seen.decide("topk", torch.zeros(1))


@rule(aten.where.self, aten.where.ScalarSelf, aten.where.ScalarOther, aten.where.Scalar)
def _where(mode: ExactMode, func: Any, condition: torch.Tensor, a: Any, b: Any) -> torch.Tensor:
    x, y, _ = numbers.aligned(mode.number(a), mode.number(b), torch.empty(1, *condition.shape))
    return mode.new(torch.where(condition, x, y), result_dtype((a, b)))


@rule(aten.masked_fill)
def _masked_fill(mode: ExactMode, func: Any, a: torch.Tensor, mask: torch.Tensor, value: Any) -> torch.Tensor:
    x, y, _ = numbers.aligned(mode.number(a), mode.number(value), torch.empty(1, *mask.shape))
    return mode.new(torch.where(mask, y, x), a.dtype)
