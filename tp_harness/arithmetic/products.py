"""Rules of matrix products: exact, and with a parameter's residues drawn a few rows at a time."""

from __future__ import annotations

import math
from typing import Any

import torch

from ..libraries.torch_private import named_arguments
from .mode import ExactMode, result_dtype
from .moving import by_row
from .operations import aten, rule
from .residues import numbers

AT_ONCE = 1 << 18  # elements of a matrix whose numbers are made at once


@rule(aten.mm, aten.bmm)
def _mm(mode: ExactMode, func: Any, a: torch.Tensor, b: torch.Tensor, *_: Any) -> torch.Tensor:
    product = _matrices if func.overloadpacket is aten.mm else _batched
    return mode.computed(product(mode, a, b), result_dtype((a, b)))


@rule(aten.addmm, aten.baddbmm)
def _addmm(mode: ExactMode, func: Any, c: Any, a: Any, b: Any, beta: float = 1, alpha: float = 1) -> torch.Tensor:
    product = _matrices if func.overloadpacket is aten.addmm else _batched
    return mode.computed(_plus(mode, product(mode, a, b), c, beta, alpha), result_dtype((a, b)))


@rule(aten.mv, aten.dot, aten.vdot)
def _mv(mode: ExactMode, func: Any, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    left = a if a.dim() == 2 else a.unsqueeze(0)
    out = _matrices(mode, left, b.unsqueeze(1)).squeeze(-1)
    return mode.computed(out if a.dim() == 2 else out.squeeze(-1), result_dtype((a, b)))


@rule(aten.addmv)
def _addmv(mode: ExactMode, func: Any, c: Any, a: Any, b: Any, beta: float = 1, alpha: float = 1) -> torch.Tensor:
    return mode.computed(
        _plus(mode, _matrices(mode, a, b.unsqueeze(1)).squeeze(-1), c, beta, alpha), result_dtype((a, b))
    )


@rule(aten.linear)
def _linear(mode: ExactMode, func: Any, x: torch.Tensor, weight: torch.Tensor, bias: Any = None) -> torch.Tensor:
    flat = x.reshape(-1, x.shape[-1]) if x.is_contiguous() else None
    if flat is None:
        flat = mode.new(mode.number(x).reshape(mode.field.rows, -1, x.shape[-1]), x.dtype)
    out = _matrices(mode, flat, weight.t())
    if bias is not None:
        out = numbers.add(mode.field, out, mode.number(bias))
    return mode.computed(out.view(-1, *x.shape[:-1], weight.shape[0]), result_dtype((x, weight)))


@rule(aten.matmul)
def _matmul(mode: ExactMode, func: Any, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """As torch: a matrix on the right is a linear map of the left one's last dimension."""
    if b.dim() == 2 and a.dim() >= 2:
        return _linear(mode, func, a, b.t())
    if b.dim() <= 2 and a.dim() <= 2:
        return (_mv if min(a.dim(), b.dim()) == 1 and b.dim() == 1 else _vector_matrix)(mode, func, a, b)
    x, y = mode.number(a), mode.number(b)
    if a.dim() == 1 or b.dim() == 1:
        x, y = (x.unsqueeze(1), y) if a.dim() == 1 else (x, y.unsqueeze(-1))
        out = numbers.product(mode.field, *numbers.aligned(x, y))
        return mode.computed(out.squeeze(-2 if a.dim() == 1 else -1), result_dtype((a, b)))
    return mode.computed(numbers.product(mode.field, *numbers.aligned(x, y)), result_dtype((a, b)))


def _vector_matrix(mode: ExactMode, func: Any, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return mode.computed(_matrices(mode, a.unsqueeze(0), b).squeeze(1), result_dtype((a, b)))


@rule(aten.convolution)
def _convolution(
    mode: ExactMode, func: Any, x: torch.Tensor, weight: torch.Tensor, bias: Any, *rest: Any
) -> torch.Tensor:
    if max(weight.shape[:2]) * math.prod(weight.shape[2:]) > mode.field.longest:
        return mode.lose(func, (x, weight, bias, *rest), {})
    known = [mode.new(mode.memory.known(each), each.dtype) for each in (x, weight)]  # as of any linear map's operands
    out = by_row(mode, func, (*known, None, *rest), {}, sums=True)
    if bias is None:
        return out
    places = mode.number(bias).view(mode.field.rows, -1, *[1] * (out.dim() - 2))
    return mode.computed(numbers.add(mode.field, mode.number(out), places), out.dtype)


@rule(aten.avg_pool2d, aten.avg_pool3d)
def _avg_pool(mode: ExactMode, func: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """The sums of windows over the numbers of their elements, which the means of ones tell."""
    given = named_arguments(func, (x, *args), kwargs)
    summed = given | {"divisor_override": 1}
    ones = {"self": torch.ones(x.shape, dtype=torch.float64)}
    counts = (func(**summed | ones) / func(**given | ones)).round()
    sums = mode.field.reduce_(torch.stack([func(**summed | {"self": row}) for row in mode.number(x)]))
    return mode.computed(numbers.divide(mode.field, sums, mode.field.constants(counts)), x.dtype)


def _matrices(mode: ExactMode, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """(rows, n, m) of (n, k) and (k, m).

    Every exponent is made known first: a linear's input has the same elements however its weight is sharded, so that
    this commutes with tensor parallelism.
    """
    left = mode.memory.known(a)
    return torch.cat([numbers.product(mode.field, left, part) for part in _parts(mode, b)], dim=-1)


def _parts(mode: ExactMode, b: torch.Tensor) -> Any:
    """The numbers of a matrix (k, m), a few of its columns at a time, in the order in which memory holds them."""
    columns = max(1, AT_ONCE // max(1, b.shape[0]))
    flipped = b.t()
    for start in range(0, max(1, b.shape[1]), columns):
        yield mode.memory.known(flipped[start : start + columns]).transpose(1, 2)


def _batched(mode: ExactMode, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """(rows, batch, n, m) of (batch, n, k) and (batch, k, m).

    Exponents stay as they are: a division by the sum of a softmax may come before or after its product with the values.
    """
    if b.numel() <= AT_ONCE:
        return numbers.product(mode.field, mode.number(a), mode.number(b))
    return torch.cat(
        [
            numbers.product(mode.field, mode.number(x), mode.number(y))
            for x, y in zip(a.split(1), b.split(1), strict=True)
        ],
        dim=1,
    )


def _plus(mode: ExactMode, product: torch.Tensor, c: torch.Tensor, beta: float, alpha: float) -> torch.Tensor:
    field = mode.field
    if alpha != 1:
        product = numbers.multiply(field, product, field.scalar(alpha))
    if beta == 0:
        return product
    term = mode.number(c)
    return numbers.add(field, product, term if beta == 1 else numbers.multiply(field, term, field.scalar(beta)))
