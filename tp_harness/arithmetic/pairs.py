"""Rules of complex numbers, which are pairs of real ones: a complex tensor is a view of the real one that has the
numbers, with a last dimension of 2.

Not covered: whatever has no rule here, such as products of complex matrices and writes in place.
"""

from __future__ import annotations

from typing import Any

import torch

from .mode import ExactMode
from .operations import PAIRS, aten, named, rule
from .residues import numbers
from .residues.field import Numbers

Pair = tuple[Numbers, Numbers]  # the real and the imaginary part


def _of(mode: ExactMode, x: Any) -> Pair:
    """The parts of an operand: a complex or real tensor of any shape, or a number of the program."""
    if not isinstance(x, torch.Tensor):
        return mode.number(x.real), mode.number(x.imag)
    if not x.is_complex():
        real = mode.number(x)
        return real, torch.zeros_like(real)
    real, imaginary = mode.number(torch.view_as_real(x.conj() if x.is_conj() else x)).unbind(-1)
    return real, -imaginary if x.is_conj() else imaginary


def _made(parts: Pair, mode: ExactMode, *operands: Any, dtype: torch.dtype | None = None) -> torch.Tensor:
    """A new complex tensor, in `dtype` or in that of its operands."""
    if dtype is None:
        kinds = [x.dtype for x in operands if isinstance(x, torch.Tensor) and x.is_complex()]
        dtype = torch.complex128 if torch.complex128 in kinds else torch.complex64
    real, imaginary = torch.broadcast_tensors(*numbers.aligned(*parts))
    return torch.view_as_complex(mode.new(torch.stack((real, imaginary), -1), dtype.to_real()))


def _product(mode: ExactMode, a: Pair, b: Pair) -> Pair:
    def term(x: Numbers, y: Numbers) -> Numbers:
        return numbers.multiply(mode.field, x, y)

    real = numbers.subtract(mode.field, term(a[0], b[0]), term(a[1], b[1]))
    return real, numbers.add(mode.field, term(a[0], b[1]), term(a[1], b[0]))


@rule(aten.complex)
def _complex(mode: ExactMode, func: Any, real: torch.Tensor, imaginary: torch.Tensor) -> torch.Tensor:
    dtype = torch.promote_types(real.dtype, imaginary.dtype).to_complex()
    return _made((mode.number(real), mode.number(imaginary)), mode, dtype=dtype)


def _squared(mode: ExactMode, x: Pair) -> Numbers:
    return _product(mode, x, (x[0], -x[1]))[0]


def _mul(mode: ExactMode, a: Any, b: Any) -> torch.Tensor:
    return _made(_product(mode, _of(mode, a), _of(mode, b)), mode, a, b)


def _div(mode: ExactMode, a: Any, b: Any) -> torch.Tensor:
    """a b* over the square of b's size."""
    over = _of(mode, b)
    top, bottom = _product(mode, _of(mode, a), (over[0], -over[1])), _squared(mode, over)
    return _made(tuple(numbers.divide(mode.field, x, bottom) for x in top), mode, a, b)  # type: ignore[arg-type]


def _add(mode: ExactMode, a: Any, b: Any, sign: int = 1, alpha: complex = 1) -> Any:
    if alpha != 1:
        return NotImplemented
    parts = zip(_of(mode, a), _of(mode, b), strict=True)
    return _made(tuple(numbers.add(mode.field, x, sign * y) for x, y in parts), mode, a, b)  # type: ignore[arg-type]


def _subtract(mode: ExactMode, a: Any, b: Any, alpha: complex = 1) -> Any:
    return _add(mode, a, b, -1, alpha)


def _reverse_subtract(mode: ExactMode, a: Any, b: Any, alpha: complex = 1) -> Any:
    return _add(mode, b, a, -1, alpha)


def _reciprocal(mode: ExactMode, a: torch.Tensor) -> torch.Tensor:
    return _div(mode, 1, a)


def _abs(mode: ExactMode, a: torch.Tensor) -> torch.Tensor:
    return mode.new(numbers.square_root(mode.field, _squared(mode, _of(mode, a))), a.dtype.to_real())


def _neg(mode: ExactMode, a: torch.Tensor) -> torch.Tensor:
    real, imaginary = _of(mode, a)
    return _made((-real, -imaginary), mode, a)


def _conjugate(mode: ExactMode, a: torch.Tensor) -> torch.Tensor:
    real, imaginary = _of(mode, a)
    return _made((real, -imaginary), mode, a)


def _clone(mode: ExactMode, a: torch.Tensor, *, dtype: Any = None, **_: Any) -> Any:
    if dtype is not None and not dtype.is_complex:
        return NotImplemented
    return _made(_of(mode, a), mode, a, dtype=dtype)


PAIRS.update(
    {
        aten.mul: _mul,
        aten.div: _div,
        aten.add: _add,
        aten.sub: _subtract,
        aten.rsub: _reverse_subtract,
        aten.reciprocal: _reciprocal,
        aten.neg: _neg,
        aten.abs: _abs,
    }
)
PAIRS.update(dict.fromkeys(named("_conj_physical conj_physical"), _conjugate))
PAIRS.update(dict.fromkeys(named("clone _to_copy"), _clone))
