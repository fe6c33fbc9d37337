"""Rules of operations that decide by the order of values: the float64 shadows decide, and the chosen residue goes on.

Two values with the same residues are the same number; between them nothing is decided.
"""

from __future__ import annotations

from typing import Any

import torch

from ..libraries.torch_private import argument_names
from . import numbers
from .elementwise import dims_of
from .field import Numbers
from .mode import ExactMode, aten, named, result_dtype, rule


def gaps(mode: ExactMode, kind: str, a: torch.Tensor, b: torch.Tensor) -> None:
    """Note decisions between numbers a and b, aligned and of one shape."""
    other = ~mode.field.same(a, b)
    gap = (a[0] - b[0]).abs()
    if other.all():
        mode.seen.decide(kind, gap, _scale(a[0], b[0]))
    else:
        mode.seen.decide(kind, gap[other], _scale(a[0], b[0]))


def _scale(*shadows: torch.Tensor) -> float:
    """The largest finite magnitude."""
    return max((float(x[x.isfinite()].abs().max()) for x in shadows if x.isfinite().any()), default=1.0)


def _pair(a: torch.Tensor, b: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.broadcast_tensors(*numbers.aligned(a, b)))


@rule(aten.gt, aten.lt, aten.ge, aten.le, aten.eq, aten.ne)
def _compare(mode: ExactMode, func: Any, a: Any, b: Any) -> torch.Tensor:
    x, y = _pair(mode.number(a), mode.number(b))
    gaps(mode, func.overloadpacket.__name__, x, y)
    return func.overloadpacket(x[0], y[0])


@rule(
    *named(
        "isnan isinf isfinite isposinf isneginf signbit logical_not logical_and logical_or any all equal isclose "
        "allclose is_nonzero bucketize searchsorted nonzero count_nonzero"
    )
)
def _decide(mode: ExactMode, func: Any, *args: Any, **kwargs: Any) -> Any:
    """Of these the margin is the distance from 0, where they ask for it."""
    shadows, named = torch_shadows(mode, args, kwargs)
    if func.overloadpacket in (aten.equal, aten.isclose, aten.allclose, aten.bucketize, aten.searchsorted):
        mode.seen.escape(f"{func} decides, and has no margin")
    return func(*shadows, **named)


def torch_shadows(mode: ExactMode, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """The arguments with the shadows in place of tensors that have numbers."""
    return tuple(map(mode.memory.shadow, args)), {key: mode.memory.shadow(x) for key, x in kwargs.items()}


@rule(aten.sign, aten.sgn)
def _sign(mode: ExactMode, func: Any, a: torch.Tensor) -> torch.Tensor:
    x = mode.number(a)
    gaps(mode, "sign", x, torch.zeros_like(x))
    return mode.new(mode.field.constants(x[0].sign()), a.dtype)


@rule(aten.abs)
def _abs(mode: ExactMode, func: Any, a: torch.Tensor) -> torch.Tensor:
    x = mode.number(a)
    gaps(mode, "sign", x, torch.zeros_like(x))
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
            gaps(mode, kind, *at)
            mode.seen.count(kind, **{name: int(hit.sum()), "all": hit.numel()})
            x = torch.where(hit, at[1], at[0])
    return mode.new(x, a.dtype)


@rule(aten.maximum, aten.minimum, aten.fmax, aten.fmin)
def _maximum(mode: ExactMode, func: Any, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    x, y = _pair(mode.number(a), mode.number(b))
    gaps(mode, func.overloadpacket.__name__, x, y)
    second = y[0] > x[0] if func.overloadpacket in (aten.maximum, aten.fmax) else y[0] < x[0]
    return mode.new(torch.where(second, y, x), result_dtype((a, b)))


@rule(aten.threshold_backward)
def _threshold_backward(mode: ExactMode, func: Any, grad: Any, a: Any, threshold: float) -> torch.Tensor:
    on = mode.memory.shadow(a) > threshold
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
    the rows.
    """
    shadow = x[0] if largest else -x[0]
    if not shadow.dim():
        return x, torch.zeros((), dtype=torch.int64)
    best, index = shadow.topk(min(2, shadow.shape[dim]), dim=dim)
    if best.shape[dim] > 1:
        first, second = (numbers.gather(x, dim, part) for part in index.split(1, dim))
        gaps(mode, "max" if largest else "min", first, second)
    index = index.narrow(dim, 0, 1)
    return numbers.gather(x, dim, index), index


@rule(aten.topk)
def _topk(
    mode: ExactMode, func: Any, a: torch.Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True
) -> Any:
    """The order among the chosen decides nothing but their places; the gap to the first that is not chosen does."""
    x = mode.number(a)
    index = (x[0] if largest else -x[0]).topk(min(k + 1, a.shape[dim]), dim=dim).indices
    _ordered(mode, "topk", x, dim, index)
    index = index.narrow(dim, 0, k).clone()
    mode.seen.count("topk", chosen=int(index.unique().numel()), all=a.shape[dim])
    return mode.new(numbers.gather(x, dim, index), a.dtype), index


@rule(aten.sort, aten.sort.stable, aten.argsort, aten.msort)
def _sort(mode: ExactMode, func: Any, a: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    x = mode.number(a)
    named = dict(zip(argument_names(func), (a, *args), strict=False)) | kwargs
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
        gaps(mode, kind, ranked.narrow(at, 0, count - 1), ranked.narrow(at, 1, count - 1))


@rule(aten.where.self, aten.where.ScalarSelf, aten.where.ScalarOther, aten.where.Scalar)
def _where(mode: ExactMode, func: Any, condition: torch.Tensor, a: Any, b: Any) -> torch.Tensor:
    x, y, _ = numbers.aligned(mode.number(a), mode.number(b), torch.empty(1, *condition.shape))
    return mode.new(torch.where(condition, x, y), result_dtype((a, b)))


@rule(aten.masked_fill)
def _masked_fill(mode: ExactMode, func: Any, a: torch.Tensor, mask: torch.Tensor, value: Any) -> torch.Tensor:
    x, y, _ = numbers.aligned(mode.number(a), mode.number(value), torch.empty(1, *mask.shape))
    return mode.new(torch.where(mask, y, x), a.dtype)
