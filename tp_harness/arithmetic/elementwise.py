"""Rules of operations on each element, and of sums over dimensions."""

from __future__ import annotations

import math
from typing import Any

import torch

from ..libraries.torch_private import operation_name
from .mode import ExactMode, result_dtype
from .operations import aten, named, rule
from .residues import numbers
from .residues.field import Field

_POWERS = 64  # the highest whole power that is multiplied out


@rule(aten.add, aten.sub, aten.rsub)
def _add(mode: ExactMode, func: Any, a: Any, b: Any, alpha: float = 1) -> torch.Tensor:
    x, y = (mode.number(b), mode.number(a)) if func.overloadpacket is aten.rsub else (mode.number(a), mode.number(b))
    if alpha != 1:  # it multiplies what is added or taken away
        y = numbers.multiply(mode.field, y, mode.field.scalar(alpha))
    combine = numbers.add if func.overloadpacket is aten.add else numbers.subtract
    return mode.computed(combine(mode.field, x, y), result_dtype((a, b)))


@rule(aten.mul)
def _mul(mode: ExactMode, func: Any, a: Any, b: Any) -> torch.Tensor:
    into = mode.new if _keeps_digits(a) or _keeps_digits(b) else mode.computed
    return into(numbers.multiply(mode.field, mode.number(a), mode.number(b)), result_dtype((a, b)))


def _keeps_digits(factor: Any) -> bool:
    """Whether a product with it, or a quotient by it, has no more digits: 0, a power of two, or a boolean tensor."""
    if isinstance(factor, torch.Tensor):
        return factor.dtype == torch.bool
    return math.frexp(factor)[0] in (0.0, 0.5, -0.5)


@rule(aten.div, aten.true_divide)
def _div(mode: ExactMode, func: Any, a: Any, b: Any, rounding_mode: str | None = None) -> torch.Tensor:
    if rounding_mode:
        return mode.keyed(func, (a, b), {"rounding_mode": rounding_mode})
    into = mode.new if _keeps_digits(b) else mode.computed
    return into(numbers.divide(mode.field, mode.number(a), mode.number(b)), result_dtype((a, b)))


@rule(aten.addcmul)
def _addcmul(mode: ExactMode, func: Any, a: Any, b: Any, c: Any, value: float = 1) -> torch.Tensor:
    product = numbers.multiply(mode.field, mode.number(b), mode.number(c))
    scaled = numbers.multiply(mode.field, product, mode.field.scalar(value))
    return mode.computed(numbers.add(mode.field, mode.number(a), scaled), result_dtype((a, b, c)))


@rule(aten.addcdiv)
def _addcdiv(mode: ExactMode, func: Any, a: Any, b: Any, c: Any, value: float = 1) -> torch.Tensor:
    quotient = numbers.divide(mode.field, mode.number(b), mode.number(c))
    scaled = numbers.multiply(mode.field, quotient, mode.field.scalar(value))
    return mode.computed(numbers.add(mode.field, mode.number(a), scaled), result_dtype((a, b, c)))


@rule(aten.lerp)
def _lerp(mode: ExactMode, func: Any, a: Any, b: Any, weight: Any) -> torch.Tensor:
    x = mode.number(a)
    step = numbers.multiply(mode.field, mode.number(weight), numbers.subtract(mode.field, mode.number(b), x))
    return mode.computed(numbers.add(mode.field, x, step), result_dtype((a, b)))


@rule(aten.neg)
def _neg(mode: ExactMode, func: Any, a: torch.Tensor) -> torch.Tensor:
    return mode.new(-mode.number(a), a.dtype)


_OF_ONE = {
    aten.reciprocal: Field.inverse,
    aten.exp: Field.exp,
    aten.log: numbers.logarithm,
    aten.sqrt: numbers.square_root,
    aten.sigmoid: numbers.sigmoid,
    aten.tanh: numbers.tanh,
    aten.erf: numbers.erf,
}


@rule(*_OF_ONE)
def _of_one(mode: ExactMode, func: Any, a: torch.Tensor) -> torch.Tensor:
    return mode.computed(_OF_ONE[func.overloadpacket](mode.field, mode.number(a)), a.dtype)


@rule(aten.square)
def _square(mode: ExactMode, func: Any, a: torch.Tensor) -> torch.Tensor:
    x = mode.number(a)
    return mode.computed(numbers.multiply(mode.field, x, x), a.dtype)


@rule(aten.rsqrt)
def _rsqrt(mode: ExactMode, func: Any, a: torch.Tensor) -> torch.Tensor:
    return mode.computed(mode.field.inverse(numbers.square_root(mode.field, mode.number(a))), a.dtype)


@rule(aten.pow.Tensor_Scalar)
def _pow(mode: ExactMode, func: Any, a: torch.Tensor, exponent: float) -> torch.Tensor:
    """Whole and half powers by products and square roots."""
    doubled = 2 * exponent
    if not abs(exponent) <= _POWERS or doubled != int(doubled):
        return mode.keyed(func, (a, exponent), {})
    x = mode.number(a)
    whole, half = divmod(int(abs(doubled)), 2)
    out = torch.ones_like(x)
    for _ in range(whole):
        out = numbers.multiply(mode.field, out, x)
    if half:
        out = numbers.multiply(mode.field, out, numbers.square_root(mode.field, x))
    return mode.computed(mode.field.inverse(out) if exponent < 0 else out, a.dtype)


@rule(aten.expm1)
def _expm1(mode: ExactMode, func: Any, a: torch.Tensor) -> torch.Tensor:
    x = mode.number(a)
    out = numbers.subtract(mode.field, mode.field.exp(x), mode.field.scalar(1))
    out[0] = x[0].expm1()
    return mode.computed(out, a.dtype)


@rule(aten.log1p)
def _log1p(mode: ExactMode, func: Any, a: torch.Tensor) -> torch.Tensor:
    x = mode.number(a)
    out = numbers.logarithm(mode.field, numbers.add(mode.field, x, mode.field.scalar(1)))
    out[0] = x[0].log1p()
    return mode.computed(out, a.dtype)


@rule(aten.silu)
def _silu(mode: ExactMode, func: Any, a: torch.Tensor) -> torch.Tensor:
    x = mode.number(a)
    return mode.computed(numbers.multiply(mode.field, x, numbers.sigmoid(mode.field, x)), a.dtype)


@rule(aten.gelu)
def _gelu(mode: ExactMode, func: Any, a: torch.Tensor, approximate: str = "none") -> torch.Tensor:
    """x / 2 (1 + erf(x / sqrt 2)), or with tanh(sqrt(2 / pi) (x + 0.044715 x^3)) in place of erf."""
    x, field = mode.number(a), mode.field
    if approximate == "tanh":
        cubed = numbers.multiply(field, x, numbers.multiply(field, x, x))
        inner = numbers.add(field, x, numbers.multiply(field, cubed, field.scalar(0.044715)))
        bend = numbers.tanh(field, numbers.multiply(field, inner, field.scalar((2 / torch.pi) ** 0.5)))
    else:
        bend = numbers.erf(field, numbers.multiply(field, x, field.scalar(0.5**0.5)))
    half = numbers.multiply(field, x, field.scalar(0.5))
    return mode.computed(numbers.multiply(field, half, numbers.add(field, bend, field.scalar(1))), a.dtype)


@rule(aten.sin, aten.tan, aten.atan, aten.asin, aten.sinh, aten.asinh, aten.erfinv)
def _odd(mode: ExactMode, func: Any, a: torch.Tensor) -> torch.Tensor:
    x = mode.number(a)
    return mode.computed(numbers.odd(mode.field, operation_name(func), func(x[0]), x), a.dtype)


@rule(aten.sum)
def _sum(mode: ExactMode, func: Any, a: Any, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> torch.Tensor:
    return mode.computed(numbers.total(mode.field, mode.number(a), dims_of(dim), keepdim=keepdim), dtype or a.dtype)


@rule(aten.mean)
def _mean(
    mode: ExactMode, func: Any, a: Any, dim: Any = None, keepdim: bool = False, dtype: Any = None
) -> torch.Tensor:
    return mode.computed(numbers.mean(mode.field, mode.number(a), dims_of(dim), keepdim=keepdim), dtype or a.dtype)


@rule(aten.var, aten.var_mean)
def _var(
    mode: ExactMode,
    func: Any,
    a: Any,
    dim: Any = None,
    unbiased: Any = None,
    *,
    correction: Any = 1,
    keepdim: Any = False,
) -> Any:
    """The mean of the squared distances from the mean, over n - correction."""
    if isinstance(dim, bool):
        dim, unbiased = None, dim
    x, field, dims = mode.number(a), mode.field, dims_of(dim)
    less = correction if unbiased is None else unbiased
    centre = numbers.mean(field, x, dims, keepdim=True)
    apart = numbers.subtract(field, x, centre)
    squares = numbers.total(field, numbers.multiply(field, apart, apart), dims, keepdim=bool(keepdim))
    count = x[0].numel() // max(1, centre[0].numel())
    out = mode.computed(
        numbers.divide(field, squares, field.scalar(int(count - int(1 if less is None else less)))), a.dtype
    )
    if func.overloadpacket is aten.var:
        return out
    return out, mode.computed(numbers.mean(field, x, dims, keepdim=bool(keepdim)), a.dtype)


@rule(aten.cumsum)
def _cumsum(mode: ExactMode, func: Any, a: torch.Tensor, dim: int, dtype: Any = None) -> torch.Tensor:
    along = dim % max(1, a.dim()) + 1
    return mode.computed(mode.field.reduce_(mode.number(a).cumsum(along)), dtype or a.dtype)


@rule(aten.prod.dim_int)
def _prod(
    mode: ExactMode, func: Any, a: torch.Tensor, dim: int, keepdim: bool = False, dtype: Any = None
) -> torch.Tensor:
    x = mode.number(a)
    along = dim % a.dim() + 1
    out = torch.ones_like(x.select(along, 0))
    for part in x.unbind(along):
        out = numbers.multiply(mode.field, out, part)
    return mode.computed(out.unsqueeze(along) if keepdim else out, dtype or a.dtype)


@rule(*named("_to_copy"))
def _to_copy(mode: ExactMode, func: Any, a: torch.Tensor, *, dtype: Any = None, **others: Any) -> torch.Tensor:
    """A cast: of floating-point numbers to whole ones it is a decision that cannot be followed further."""
    into = dtype or a.dtype
    if not into.is_floating_point or str(others.get("device", "cpu")) != "cpu":
        if into == torch.bool:
            with mode:
                return a != 0
        mode.seen.escape(f"floating-point numbers are made {into} on {others.get('device') or 'cpu'}")
        return mode.memory.shadow(a).to(into)
    plain = func(a, dtype=into, **others)
    if mode.memory.move(a, plain):
        return plain
    return mode.new(mode.narrowed(mode.number(a).clone(), a.dtype, into), into)


def dims_of(dim: Any) -> list[int]:
    """A `dim` argument as a list; empty where all are meant."""
    return [] if dim is None else [dim] if isinstance(dim, int) else list(dim)
