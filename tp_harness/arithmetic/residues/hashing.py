"""Pseudo-random functions of residues: keyed by the run and by a name, they are known only by their values."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch

from .tables import column

_MIX = (-4658895280553007687, -7723592293110705685, -7046029254386353131)  # odd 64-bit multipliers of splitmix64
_MOST = 2**62 - 1


class Hash:
    """A family of functions from residues modulo each of several primes to residues.

    Args:
        key: of the run, below 2^62.
        primes: modulo which arguments are given.
    """

    def __init__(self, key: int, primes: Sequence[int]) -> None:
        self._salts = [key + p * 0x85EBCA6B for p in primes]

    def values(
        self, name: str, arguments: Sequence[torch.Tensor], moduli: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        """For each of `moduli` (one by prime, float64 (primes,)) independent balanced residues, (primes, *shape).

        Args:
            name: of the function.
            arguments: balanced residues, float64 (primes, *shape); a value is unknown (nan) where one of them is.
            moduli: of what is returned.
        """
        start = zlib.crc32(name.encode()) * 0x9E3779B1
        salts = torch.tensor([(start + salt) & _MOST for salt in self._salts])
        mixed = column(salts, arguments[0])
        for argument in arguments:
            mixed = _mixed(argument.nan_to_num(nan=0.0).to(torch.int64).mul_(_MIX[2]).add_(mixed))
        unknown = sum(arguments[1:], arguments[0]).mul_(0) if len(arguments) > 1 else arguments[0] * 0
        out = []
        for of_prime in moduli:
            upper = (mixed >> 11).to(torch.float64)  # 53 binary digits, of which none is rounded away
            out.append(upper.mul_(column((of_prime - 1) / 2**53, upper)).round_().add_(unknown))
            mixed = _mixed(mixed) if len(moduli) > 1 else mixed
        return out


def _mixed(x: torch.Tensor) -> torch.Tensor:
    """A bijection of 64-bit numbers whose every digit depends on all (splitmix64)."""
    x = (x >> 30).bitwise_xor_(x).mul_(_MIX[0])
    x = (x >> 27).bitwise_xor_(x).mul_(_MIX[1])
    return (x >> 31).bitwise_xor_(x)
