"""The number that a constant of a program stands for: 0.1 is one tenth, and not the float next to it.

128 ** -0.5 and 1 / sqrt(128) round to the same float, or to its neighbour; as roots of a fraction they are equal.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import torch

SHORT = 1 << 12  # a float with a denominator up to this is meant as it stands
DENOMINATORS = (1 << 6, 1 << 12, 1 << 17)
MOST = 1 << 20  # of a numerator
STEPS = 4  # roundings that a root may have on its way, each of half a unit
DIGITS = {torch.float64: 15, torch.float32: 6, torch.float16: 3, torch.bfloat16: 2}  # decimals that a dtype keeps apart


@dataclass(frozen=True)
class Constant:
    """`rational`, or with `root` its square root."""

    rational: Fraction
    root: bool = False


@lru_cache(maxsize=4096)
def meant(value: float, dtype: torch.dtype = torch.float64) -> Constant:
    """The simplest rational or decimal, or else root of a rational, that rounds to `value` in its dtype; `value` itself
    if none.

    A float64 that float32 holds too is taken for one of float32: torch's own functions pass an epsilon on like that.
    Roots are looked for in float64 alone: with fewer digits, many a number is near one by chance.

    Args:
        value: finite.
        dtype: of the number as the program holds it.
    """
    exact = Fraction(value)
    if exact.denominator <= SHORT:
        return Constant(exact)
    wide = dtype == torch.float64 and _rounded(value, torch.float32) != value
    found = next(_simple(value, exact, dtype if wide or dtype != torch.float64 else torch.float32), None)
    if found is not None:
        return Constant(found)
    square = (exact * exact).limit_denominator(SHORT)
    if wide and 0 < square.numerator <= SHORT and abs(math.sqrt(square) / value - 1) < STEPS * sys.float_info.epsilon:
        root = Fraction(math.isqrt(square.numerator), math.isqrt(square.denominator))
        return Constant(root) if root * root == square else Constant(square, root=True)
    return Constant(exact)


def _simple(value: float, exact: Fraction, dtype: torch.dtype) -> Iterator[Fraction]:
    """The fractions and the decimal that round to `value`, simplest first."""
    wide = dtype == torch.float64
    decimal = Fraction(f"{value:.{DIGITS.get(dtype, 1)}g}")
    near = [exact.limit_denominator(most) for most in (DENOMINATORS if wide else DENOMINATORS[:2])]
    fractions = [each for each in near if each and abs(each.numerator) <= MOST]
    for each in (*fractions, decimal) if wide else (decimal, *fractions):
        if _rounded(float(each), dtype) == value:
            yield each


def _rounded(value: float, dtype: torch.dtype) -> float:
    return torch.tensor(value, dtype=torch.float64).to(dtype).item()
