"""Arithmetic on numbers of a Field: each function takes and gives rows, (rows, *shape), and broadcasts as torch does.

Row 0, the float64 shadow, is computed by the plain formula; the residues by the exact one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import torch

from .field import Field, Numbers

ROWS_AT_ONCE = 256  # of a weight, so that its residues are drawn, used and dropped in the cache


def aligned(*numbers: Numbers) -> list[Numbers]:
    """The numbers with as many dimensions each, new ones after that of the rows, so that they broadcast."""
    most = max(x.dim() for x in numbers)
    return [x.view(x.shape[0], *[1] * (most - x.dim()), *x.shape[1:]) for x in numbers]


def add(field: Field, a: Numbers, b: Numbers) -> Numbers:
    """a + b."""
    a, b = aligned(a, b)
    return field.reduce_(a + b)


def subtract(field: Field, a: Numbers, b: Numbers) -> Numbers:
    """a - b."""
    a, b = aligned(a, b)
    return field.reduce_(a - b)


def multiply(field: Field, a: Numbers, b: Numbers) -> Numbers:
    """a b."""
    a, b = aligned(a, b)
    return field.reduce_(a * b)


def divide(field: Field, a: Numbers, b: Numbers) -> Numbers:
    """a / b."""
    out = multiply(field, a, field.inverse(b))
    a, b = aligned(a, b)
    out[0] = a[0] / b[0]
    return out


def total(field: Field, x: Numbers, dims: Sequence[int], *, keepdim: bool) -> Numbers:
    """The sum over dimensions of the tensor, counted without the rows; none given means all."""
    shape = x.dim() - 1
    along = [d % shape + 1 for d in dims] if len(dims) else list(range(1, shape + 1))
    return field.reduce_(x.sum(dim=along, keepdim=keepdim)) if along else x.clone()


def mean(field: Field, x: Numbers, dims: Sequence[int], *, keepdim: bool) -> Numbers:
    """The mean over dimensions, as `total`."""
    over = [x.shape[1:][d] for d in dims] if len(dims) else list(x.shape[1:])
    return multiply(field, total(field, x, dims, keepdim=keepdim), field.scalar(Fraction(1, max(1, math.prod(over)))))


def product(field: Field, a: Numbers, b: Numbers) -> Numbers:
    """The matrix product (rows, ..., n, k) @ (rows, ..., k, m), exact: long sums are split."""
    k = a.shape[-1]
    if k <= field.longest:
        return field.reduce_(torch.matmul(a, b))
    out: Numbers | None = None
    for start in range(0, k, field.longest):
        part = slice(start, start + field.longest)
        piece = field.reduce_(torch.matmul(a[..., part], b[..., part, :]))
        out = piece if out is None else field.reduce_(out + piece)
    assert out is not None
    return out


def square_root(field: Field, x: Numbers) -> Numbers:
    """sqrt(x), a keyed function: nothing of it is known but its argument."""
    return field.keyed("sqrt", x[0].sqrt(), [x])


def logarithm(field: Field, x: Numbers) -> Numbers:
    """log(x), a keyed function."""
    return field.keyed("log", x[0].log(), [x])


def sigmoid(field: Field, x: Numbers) -> Numbers:
    """1 / (1 + exp(-x)); 1 + exp(-x) is never 0, because -1 has no logarithm where q is odd."""
    out = field.inverse(add(field, field.exp(-x), field.scalar(1)))
    out[0] = x[0].sigmoid()
    return out


def tanh(field: Field, x: Numbers) -> Numbers:
    """2 sigmoid(2 x) - 1."""
    two = field.scalar(2)
    out = subtract(field, multiply(field, two, sigmoid(field, multiply(field, two, x))), field.scalar(1))
    out[0] = x[0].tanh()
    return out


def erf(field: Field, x: Numbers) -> Numbers:
    """erf(x), an odd keyed function."""
    return odd(field, "erf", x[0].erf(), x)


def odd(field: Field, name: str, shadow: torch.Tensor, x: Numbers) -> Numbers:
    """An odd keyed function, f(-x) = -f(x); `shadow` is float64, of the shape of `x` without the rows."""
    sign = torch.ones_like(x)
    sign[1:] = field.sign_of_residues(x)
    out = field.keyed(name, shadow, [x * sign])
    out[1:] *= sign[1:]
    return out


def gather(x: Numbers, dim: int, index: torch.Tensor) -> Numbers:
    """The chosen elements of every row; `index` has the shape that torch.gather wants, without the rows."""
    dim = dim % (x.dim() - 1) + 1
    return x.gather(dim, index.unsqueeze(0).expand(x.shape[0], *index.shape))


def choose(condition: Numbers, a: Numbers, b: Numbers) -> Numbers:
    """`a` where the condition (of the tensor's shape) holds, else `b`."""
    a, b = aligned(a, b)
    return torch.where(condition, a, b)
