"""The operator tokens of nki.language (nl.add, ...) that the covered instructions take, with their math.

Vector Engine operators compute in float32, bitvec ones on integers as they are. Scalar Engine approximates
its functions by piece-wise polynomials on hardware; no error bound is documented, and float32 math stands
in for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, pi
from typing import Any, NoReturn

import numpy as np

Binary = Callable[[Any, Any], Any]
Unary = Callable[[Any], Any]


@dataclass(frozen=True, eq=False, kw_only=True)
class Operator:
    """A token; an instruction takes it if the field it needs is set."""

    name: str
    binary: Binary | None = None
    reduce: Callable[..., Any] | None = None
    activation: Unary | None = None
    valid: tuple[float, float] = (-inf, inf)
    bitvec: bool = False
    compares: bool = False

    def __repr__(self) -> str:
        """Show the name the kernel author wrote."""
        return f"nl.{self.name}"

    def __call__(self, *args: object, **kwargs: object) -> NoReturn:
        """Refuse the functional layer: kernels here are written in nki.isa instructions."""
        raise NotImplementedError(
            f"nl.{self.name}(...) is not covered; use an nki.isa instruction with op=nl.{self.name}"
        )


def _truth(compare: Binary) -> Binary:
    """Turn a comparison into one that yields 1.0 and 0.0."""
    return lambda left, right: compare(left, right).astype(np.float32)


def _sigmoid(x: Any) -> Any:
    return np.float32(1.0) / (np.float32(1.0) + np.exp(-x))


def _arithmetic(name: str, ufunc: Any, *, reduces: bool = True) -> Operator:
    return Operator(name=name, binary=ufunc, reduce=ufunc.reduce if reduces else None)


def _comparison(name: str, ufunc: Any) -> Operator:
    return Operator(name=name, binary=_truth(ufunc), compares=True)


def _bitvec(name: str, ufunc: Any) -> Operator:
    return Operator(name=name, binary=ufunc, reduce=ufunc.reduce, bitvec=True)


def _activation(name: str, function: Unary, valid: tuple[float, float] = (-inf, inf)) -> Operator:
    return Operator(name=name, activation=function, valid=valid)


OPERATORS: dict[str, Operator] = {
    operator.name: operator
    for operator in (
        _arithmetic("add", np.add),
        # The order in which hardware subtracts along an axis is not documented.
        _arithmetic("subtract", np.subtract, reduces=False),
        _arithmetic("multiply", np.multiply),
        _arithmetic("maximum", np.maximum),
        _arithmetic("minimum", np.minimum),
        _comparison("equal", np.equal),
        _comparison("not_equal", np.not_equal),
        _comparison("greater", np.greater),
        _comparison("greater_equal", np.greater_equal),
        _comparison("less", np.less),
        _comparison("less_equal", np.less_equal),
        _bitvec("bitwise_and", np.bitwise_and),
        _bitvec("bitwise_or", np.bitwise_or),
        _bitvec("bitwise_xor", np.bitwise_xor),
        _activation("copy", np.array),
        _activation("square", np.square),
        _activation("relu", lambda x: np.maximum(x, np.float32(0.0))),
        _activation("abs", np.abs),
        _activation("exp", np.exp),
        _activation("tanh", np.tanh),
        _activation("sigmoid", _sigmoid),
        _activation("silu", lambda x: x * _sigmoid(x)),
        _activation("gelu_apprx_sigmoid", lambda x: x * _sigmoid(np.float32(1.702) * x)),
        _activation("rsqrt", lambda x: np.float32(1.0) / np.sqrt(x), (2.0**-87, 2.0**97)),
        _activation("sqrt", np.sqrt, (2.0**-116, 2.0**118)),
        _activation("log", np.log, (2.0**-64, 2.0**64)),
        _activation("sin", np.sin, (-pi, pi)),
        # Documented as plus or minus this range; the sign is handled where the range is checked.
        _activation("reciprocal", np.reciprocal, (2.0**-42, 2.0**42)),
    )
}
