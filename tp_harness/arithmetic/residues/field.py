"""Numbers that are computed with exactly: a float64 shadow, and residues modulo primes, which have no rounding.

A tensor of such numbers is a tensor of rows: row 0 the shadow, then for each pair of primes the residue modulo p and
the exponent's residue modulo q. Shape (1 + 2 * pairs, *shape), float64. Residues are balanced, |r| <= p / 2, so that a
sum of K products is exact while K p^2 / 4 < 2^53. An exponent residue may be unknown (nan, which spreads by itself).
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import astuple
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from .constants import Constant, meant
from .drawing import draw_at, draw_run, tables
from .hashing import Hash
from .primes import BITS, PrimePair, draw_pairs, square_root
from .tables import Tables, balanced, column, index_of, table_of_inverses, table_of_powers

_SCALARS = 4096  # constants of a program that are kept
WHOLE = 2.0**53  # float64 holds every whole number up to here
_SHORT = 1 << 12  # elements of a run of a variable whose residues are kept
_RUNS = 1 << 9  # such runs

Numbers: TypeAlias = torch.Tensor  # (1 + 2 * pairs, *shape), float64: a tensor of such numbers


class Field:
    """The primes, the key of all pseudo-random functions, and the tables of one run.

    Args:
        pairs: of primes.
        key: below 2^62.
    """

    def __init__(self, pairs: Sequence[PrimePair], key: int) -> None:
        self.pairs, self.key = tuple(pairs), key
        self.moduli = tuple(m for pair in self.pairs for m in (pair.p, pair.q))
        self.rows = 1 + len(self.moduli)
        self.value_rows = tuple(range(1, self.rows, 2))
        self._m = torch.tensor(self.moduli, dtype=torch.float64)
        self._p, self._q = self._m[::2], self._m[1::2]
        self._inverse_m = 1 / self._m
        self._hash = Hash(key, self.primes)
        self._runs: dict[tuple[str, int, int], torch.Tensor] = {}  # residues that `draw` made, of short runs
        self._scalars: dict[tuple[str, torch.dtype], torch.Tensor] = {}  # what `scalar` made
        self.zeros = 0  # residues 0 that were inverted
        self.longest = int(WHOLE / (max(self.moduli) / 2) ** 2) - 1  # products in one sum

    @staticmethod
    def drawn(seed: int, pairs: int = 2, bits: int = BITS) -> Field:
        """A field whose primes, of `bits` bits, and key are drawn from a seed."""
        source = random.Random(f"exact arithmetic {seed} {pairs} {bits}")
        return Field(draw_pairs(pairs, source, bits), source.getrandbits(62))

    @property
    def primes(self) -> tuple[int, ...]:
        """p of each pair."""
        return tuple(pair.p for pair in self.pairs)

    def reduce_(self, rows: Numbers) -> Numbers:
        """Balance residues that are whole numbers below 2^53, in place; (rows, *shape), which is returned."""
        residues = rows[1:]
        quotients = torch.mul(residues, column(self._inverse_m, rows)).round_()
        residues.addcmul_(quotients, column(self._m, rows), value=-1)
        return rows

    def known(self, rows: Numbers) -> Numbers:
        """The numbers with every exponent residue known: an unknown one is an odd keyed function of the value.

        Odd, so that exp(-x) exp(x) = 1 still holds. The same value gets the same exponent everywhere.
        """
        if not rows[2].isnan().any():
            return rows
        rows = rows.clone()
        residues, exponents = self._balanced(rows), rows[2::2]
        fresh = self._hash.values("exponent", [residues.abs()], [self._q])[0].mul_(residues.sign())
        rows[2::2] = torch.where(exponents.isnan(), fresh, exponents)
        return rows

    def exp(self, rows: Numbers) -> Numbers:
        """exp of each number; where the shadow vanishes below what float64 holds, that is 0."""
        rows = self.known(rows)
        out = torch.full_like(rows, math.nan)
        torch.exp(rows[0], out=out[0])
        out[1::2] = self._powers.look_up(rows[2::2])
        out[1:].masked_fill_(out[0] == 0, 0.0)
        return out

    def inverse(self, rows: Numbers) -> Numbers:
        """1 / x, where the inverse of the residue 0 is 0; counted in `zeros`, unless the shadow is 0 too."""
        self.zeros += int(((rows[1:] == 0) & (rows[0] != 0)).sum())
        return torch.cat([1 / rows[:1], self._inverses.look_up(rows[1:])])

    def keyed(self, name: str, shadow: torch.Tensor, arguments: Sequence[torch.Tensor]) -> torch.Tensor:
        """A function of which nothing is known but that equal arguments give equal values.

        Args:
            name: of the function; each name is another one.
            shadow: float64, any shape: the values in float64.
            arguments: numbers, each (rows, *shape of `shadow`); their residues modulo p decide.
        """
        out = torch.empty((self.rows, *shadow.shape), dtype=torch.float64)
        out[0] = shadow
        out[1::2], out[2::2] = self._hash.values(name, list(map(self._balanced, arguments)), [self._p, self._q])
        return out

    def scalar(self, value: float | Fraction | Constant, dtype: torch.dtype = torch.float64) -> torch.Tensor:
        """A constant of the program, (rows,); of an infinite one the residue is 0, of nan it is unknown."""
        key = repr(value), dtype  # -0.0 is not 0.0
        found = self._scalars.get(key)
        if found is None:
            if len(self._scalars) >= _SCALARS:
                self._scalars.clear()
            found = self._scalars[key] = self._scalar(value, dtype)
        return found.clone()

    def _scalar(self, value: float | Fraction | Constant, dtype: torch.dtype) -> torch.Tensor:
        if isinstance(value, float) and not math.isfinite(value):
            return torch.tensor(
                [value, *[math.nan if math.isnan(value) else 0.0] * len(self.moduli)], dtype=torch.float64
            )
        if isinstance(value, (int, Fraction)):
            constant, shadow = Constant(Fraction(value)), float(value)
        elif isinstance(value, Constant):
            constant, shadow = value, float(value.rational) ** (0.5 if value.root else 1.0)
        else:
            constant, shadow = meant(value, dtype), value
        return torch.tensor([shadow, *(_residue(constant, m, shadow) for m in self.moduli)], dtype=torch.float64)

    def constants(self, x: torch.Tensor) -> torch.Tensor:
        """The exact dyadic values of a floating-point tensor of any shape; infinite ones and nan as in `scalar`."""
        shadow = x.detach().to(torch.float64)
        finite = torch.where(shadow.isfinite(), shadow, 0.0)
        mantissa, exponent = torch.frexp(finite)
        digits = (mantissa * WHOLE).to(torch.int64)
        at = exponent.to(torch.int64) + 1100
        out = torch.empty((self.rows, *x.shape), dtype=torch.float64)
        out[0] = shadow
        for row, m in enumerate(self.moduli, start=1):
            out[row] = digits.remainder(m).to(torch.float64) * self._powers_of_two[row - 1][at]
        out[1:].masked_fill_(shadow.isnan(), math.nan)
        return self.reduce_(out)

    def draw(self, name: str, x: torch.Tensor, first: int | torch.Tensor) -> Numbers:
        """Independent residues for elements of a variable, by its name and their indices.

        Args:
            name: of a parameter or input.
            x: the values, any shape, any floating-point dtype.
            first: the index of the first element, if the others follow it; or that of each, int32 of the shape of x.
        """
        out = torch.empty((self.rows, *x.shape), dtype=torch.float64)
        out[0] = x
        residues = out.view(self.rows, -1)[1:]
        if isinstance(first, int) and x.numel() <= _SHORT:
            residues.copy_(self._run(name, first, x.numel()))
        else:
            self._draw(name, first, residues)
        return out

    def _run(self, name: str, first: int, count: int) -> torch.Tensor:
        """The residues of a short run of a variable, (moduli, count), which are asked for many times."""
        key = name, first, count
        found = self._runs.get(key)
        if found is None:
            if len(self._runs) >= _RUNS:
                self._runs.clear()
            found = self._runs[key] = torch.empty((len(self.moduli), count), dtype=torch.float64)
            self._draw(name, first, found)
        return found

    def _draw(self, name: str, first: int | torch.Tensor, out: torch.Tensor) -> None:
        """Write residues as of `draw`, (moduli, elements)."""
        for row, pair in enumerate(self.pairs):
            digits, own = tables(self.key, name, pair), out[2 * row : 2 * row + 2]
            if isinstance(first, int):
                draw_run(digits, pair, first, own)
            else:
                draw_at(digits, pair, first.reshape(-1), own)

    def same(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Where two tensors of numbers have the same residue modulo every p: bool, of the common shape.

        An infinite number is the same as an infinite one of its sign alone.
        """
        difference = (a[1::2] - b[1::2]).abs_()
        equal = ((difference == 0) | (difference == column(self._p, difference))).all(0)
        return equal & ((a[0] - b[0]).isfinite() | (a[0] == b[0]))

    def sign_of_residues(self, rows: Numbers) -> torch.Tensor:
        """-1, 0 or 1 for each residue modulo p, and the same for its exponent: (rows - 1, *shape)."""
        return self._balanced(rows).sign().repeat_interleave(2, 0)

    def residues(self, rows: Numbers, *, exponents: bool = False) -> list[torch.Tensor]:
        """By prime p, the residues from 0 to p - 1, int32, of the tensor's shape; -1 where unknown.

        With `exponents`, after them by prime q those of the exponents.
        """
        return [
            index_of(rows[row], m).nan_to_num(nan=-1.0).to(torch.int32)
            for row, m in self._in_order[: None if exponents else len(self.pairs)]
        ]

    def from_residues(self, shadow: torch.Tensor, residues: Sequence[torch.Tensor]) -> Numbers:
        """The numbers that `residues` wrote, exponents unknown where it left them out.

        `shadow` is float64, of the residues' shape.
        """
        out = torch.full((self.rows, *shadow.shape), math.nan, dtype=torch.float64)
        out[0] = shadow
        for (row, m), residue in zip(self._in_order, residues, strict=False):
            out[row] = torch.where(residue < 0, math.nan, balanced(residue.to(torch.float64), m))
        return out

    @property
    def _in_order(self) -> list[tuple[int, int]]:
        """Row and modulus of each p, then of each q."""
        return [
            *zip(self.value_rows, self.primes, strict=True),
            *((value + 1, pair.q) for value, pair in zip(self.value_rows, self.pairs, strict=True)),
        ]

    def _balanced(self, rows: Numbers) -> torch.Tensor:
        """Residues modulo each p within p / 2 of 0, (primes, *shape); a reduction may have rounded to a neighbour."""
        return balanced(rows[1::2], column(self._p, rows))

    def write(self, path: Path) -> None:
        """Write the tables, which take a third of a second to make, for other processes to map."""
        made = {"pairs": [astuple(pair) for pair in self.pairs], "key": self.key}
        joined = {"powers": self._powers.joined, "inverses": self._inverses.joined}
        save_file(joined, path, metadata={"field": json.dumps(made)})

    @staticmethod
    def read(path: Path) -> Field:
        """The field that `write` wrote, its tables mapped."""
        with safe_open(path, framework="pt") as file:
            made = json.loads(file.metadata()["field"])
            field = Field([PrimePair(*pair) for pair in made["pairs"]], made["key"])
            field._powers = Tables(file.get_tensor("powers"), [pair.q for pair in field.pairs])
            field._inverses = Tables(file.get_tensor("inverses"), field.moduli)
        return field

    @cached_property
    def _powers(self) -> Tables:
        """By pair, the powers of g."""
        made = [table_of_powers(pair.g, pair.q, pair.p) for pair in self.pairs]
        return Tables(torch.cat(made), [pair.q for pair in self.pairs])

    @cached_property
    def _inverses(self) -> Tables:
        """By modulus, the inverses."""
        return Tables(torch.cat(list(map(table_of_inverses, self.moduli))), self.moduli)

    @cached_property
    def _powers_of_two(self) -> torch.Tensor:
        """2^(k - 1100 - 53) for every exponent k of a float64, balanced: (moduli, 2200)."""
        rows = []
        for m in self.moduli:
            half = pow(2, -1, m)
            values = [pow(2, e, m) if e >= 0 else pow(half, -e, m) for e in range(-1153, 1047)]
            rows.append([v - m if v > m // 2 else v for v in values])
        return torch.tensor(rows, dtype=torch.float64)


def _residue(constant: Constant, m: int, shadow: float) -> float:
    """A constant's balanced residue; a root that does not exist modulo m is that of its float."""
    top, bottom = constant.rational.numerator, constant.rational.denominator
    if constant.root:
        roots = [square_root(n, m) for n in (top, bottom)]
        if None in roots:
            return _residue(Constant(Fraction(shadow)), m, shadow)
        top, bottom = (root or 0 for root in roots)
    residue = top % m * pow(bottom % m, -1, m) % m
    return float(residue - m if residue > m // 2 else residue)
