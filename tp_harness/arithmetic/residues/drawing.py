"""Random residues of the elements of a variable, by their index: made where they are read, the same in every process.

An index of 32 bits is cut into three digits, each of which picks 64 random bits from a table of the variable's own;
their exclusive or is random (tabulation hashing: any three elements are independent). The tables are drawn from the
run's key. The upper half of the bits gives the residue modulo p, the lower half that modulo q.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch

from .primes import PrimePair

LOW, MIDDLE, HIGH = 12, 10, 10  # binary digits of an index
BLOCK = 1 << LOW
_ODD = 0x2C1B3C6D  # a multiplier that moves low digits up
BLOCKS_AT_ONCE = 16  # so that what is computed stays in the cache


class Digits(NamedTuple):
    """By the value of a digit of the index, 64 random bits, int64."""

    low: torch.Tensor
    middle: torch.Tensor
    high: torch.Tensor


@lru_cache(maxsize=256)
def tables(key: int, name: str, pair: PrimePair) -> Digits:
    """The tables of a variable for a pair of primes."""
    seed = hashlib.blake2b(f"{key} {name} {pair.p}".encode(), digest_size=16).digest()
    source = np.random.Generator(np.random.SFC64(int.from_bytes(seed, "little")))
    sizes = (1 << digits for digits in (LOW, MIDDLE, HIGH))
    bits = (source.integers(-(2**63), 2**63, size, dtype=np.int64) for size in sizes)
    return Digits(*map(torch.from_numpy, bits))


def draw_run(digits: Digits, pair: PrimePair, first: int, out: torch.Tensor) -> None:
    """Write the residues of the elements from index `first` on: `out` is float64 (2, elements), of p and of q."""
    count, start = out.shape[1], first % BLOCK
    blocks = torch.arange(first // BLOCK, (first + max(0, count - 1)) // BLOCK + 1)
    above = digits.middle[blocks & ((1 << MIDDLE) - 1)] ^ digits.high[(blocks >> MIDDLE) & ((1 << HIGH) - 1)]
    if len(above) == 1:
        _scale(above ^ digits.low[start : start + count], pair, out)
        return
    done = 0
    for at in range(0, len(above), BLOCKS_AT_ONCE):
        bits = (above[at : at + BLOCKS_AT_ONCE, None] ^ digits.low).view(-1)[start : start + count - done]
        _scale(bits, pair, out[:, done : done + len(bits)])
        done, start = done + len(bits), 0


def draw_at(digits: Digits, pair: PrimePair, index: torch.Tensor, out: torch.Tensor) -> None:
    """Write the residues of the elements with these indices, int32 (elements,) modulo 2^32; `out` as of `draw_run`."""
    step = BLOCK * BLOCKS_AT_ONCE
    for at in range(0, len(index), step):
        part = index[at : at + step]
        bits = digits.low.index_select(0, part & (BLOCK - 1))
        bits ^= digits.middle.index_select(0, (part >> LOW) & ((1 << MIDDLE) - 1))
        bits ^= digits.high.index_select(0, (part >> (LOW + MIDDLE)) & ((1 << HIGH) - 1))
        _scale(bits, pair, out[:, at : at + step])


def _scale(bits: torch.Tensor, pair: PrimePair, out: torch.Tensor) -> None:
    """Balanced residues of random bits, int64 (elements,)."""
    halves = bits.view(torch.int32).mul_(_ODD).view(-1, 2)  # exclusive or alone would be linear in binary digits
    for row, modulus in enumerate((pair.p, pair.q)):
        torch.mul(halves[:, row], _step(modulus), out=out[row]).round_()


@lru_cache
def _step(modulus: int) -> torch.Tensor:
    """Of residues by 32 random bits: float64; multiplied by a number of Python's, they would be float32."""
    return torch.tensor((modulus - 1) / 2**32, dtype=torch.float64)
