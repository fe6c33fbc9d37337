"""Pairs of primes (p, q) with p = 2 q + 1, which carry exact arithmetic: values modulo p, exponents modulo q.

exp(x) = g^(x mod q) mod p, for g of order q modulo p, makes exp(a + b) = exp(a) exp(b) hold exactly. The scheme is that
of Mirage (OSDI 2025); its theory is in Li and Wu, arXiv 2506.04529.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache

import torch

BITS = 21  # of p: a sum of 8,000 products of residues stays below 2^53, where float64 is exact
ROOTS = (2, 3)  # numbers that have a square root modulo p and q, so that 128 ** -0.5 has its exact value


@dataclass(frozen=True)
class PrimePair:
    """p = 2 q + 1, both prime, and g, a number of order q modulo p."""

    p: int
    q: int
    g: int


def draw_pairs(count: int, source: random.Random, bits: int = BITS) -> tuple[PrimePair, ...]:
    """Draw `count` different pairs whose p has `bits` bits, from 7 on."""
    pairs = source.sample(_safe_primes(bits), count)
    return tuple(PrimePair(p, q, _power_of_root(p, q, source)) for p, q in pairs)


def powers(base: int, count: int, modulus: int) -> torch.Tensor:
    """base^0 ... base^(count - 1) modulo `modulus` (below 2^31): int64 (count,)."""
    table = torch.ones(1, dtype=torch.int64)
    while len(table) < count:
        table = torch.cat((table, table * pow(base, len(table), modulus) % modulus))
    return table[:count]


def primitive_root(prime: int) -> int:
    """The least number whose powers are all of 1 ... prime - 1, for an odd prime."""
    factors = _prime_factors(prime - 1)
    return next(g for g in range(2, prime) if all(pow(g, (prime - 1) // f, prime) != 1 for f in factors))


@lru_cache(maxsize=4096)
def square_root(number: int, prime: int) -> int | None:
    """A square root of a whole number above 0 modulo an odd prime below 2^31, counted from 0; None where it has none.

    It is the product of the roots of the factors that have one, so that sqrt(8) sqrt(2) = 4.
    """
    root, rest = 1, 1
    for factor in _prime_factors(number):
        while number % factor**2 == 0:
            number //= factor**2
            root = root * factor % prime
        if number % factor == 0:
            own = _even_root(factor, prime)
            root, rest = (root, rest * factor) if own is None else (root * own % prime, rest)
    of_rest = _even_root(rest, prime) if rest > 1 else 1
    return None if of_rest is None else root * of_rest % prime


def _even_root(number: int, prime: int) -> int | None:
    residue = number % prime
    if pow(residue, (prime - 1) // 2, prime) != 1:
        return None
    roots = (r for r in range(prime) if r * r % prime == residue)
    root = pow(residue, (prime + 1) // 4, prime) if prime % 4 == 3 else next(roots)
    return root if root % 2 == 0 else prime - root


def _power_of_root(p: int, q: int, source: random.Random) -> int:
    """A random number of order q: the square of a power of a primitive root."""
    return pow(primitive_root(p), 2 * source.randrange(1, q), p)


@lru_cache
def _safe_primes(bits: int) -> list[tuple[int, int]]:
    """All (p, q) of that many bits for which every number of ROOTS has its roots (where any such pair exists)."""
    sieve = bytearray([1]) * (1 << bits)
    sieve[:2] = b"\0\0"
    for i in range(2, 1 << (bits + 1) // 2):
        if sieve[i]:
            sieve[i * i :: i] = bytes(len(sieve[i * i :: i]))
    found = [(p, p // 2) for p in range((1 << (bits - 1)) | 1, 1 << bits, 2) if sieve[p] and sieve[p // 2]]
    rooted = [pair for pair in found if all(pow(n, (m - 1) // 2, m) == 1 for m in pair for n in ROOTS)]
    return rooted or found


def _prime_factors(number: int) -> list[int]:
    factors, divisor = [], 2
    while divisor * divisor <= number:
        if number % divisor == 0:
            factors.append(divisor)
            while number % divisor == 0:
                number //= divisor
        divisor += 1
    return factors + [number] * (number > 1)
