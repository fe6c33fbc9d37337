"""What a verdict in exact arithmetic claims: equality of residues, how sure it is, and where it holds. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

RESIDUES = "residues"  # the name of the check that compares them


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What was compared in exact arithmetic: the residues of the reference and of the ranks, modulo random primes.

    Args:
        primes: the p of each pair p = 2q + 1.
        draws: how many points, sets of weights and inputs, were compared modulo each prime.
        bound: the highest probability that a wrong function is accepted at this point, for a difference in one element
            that an adversary chose.
        typical: that probability for an ordinary mistake, which changes many elements.
        coverage: sentences on the branches for which the claim holds, such as "30 of 32 experts chosen".
        margin: the smallest distance of a decision (a maximum, a choice, a comparison) from a tie, relative to the
            values compared.
        margin_of: of which decision.
        undecided: sentences that say what could not be decided, and why; empty for a PROVED result.
        shadow: the largest relative difference of the outputs that float64 computed beside the residues.
        unequal: the outputs whose residues are not all known and equal.
        first: of a NOT PROVED result, which tensor is the first such one, and on which ranks, as a clause; "" where it
            was not looked for.
    """

    primes: tuple[int, ...]
    draws: int
    bound: float
    typical: float
    coverage: tuple[str, ...] = ()
    margin: float = float("inf")
    margin_of: str = ""
    undecided: tuple[str, ...] = ()
    shadow: float = 0.0
    unequal: tuple[str, ...] = ()
    first: str = ""


def at_most(bound: float, digits: int = 0) -> str:
    """A positive bound as `8e-06` or, with digits after the point, as `7.5e-06`: rounded up, never down."""
    exponent = math.floor(math.log10(bound)) - digits if bound > 0 else 0
    return f"{math.ceil(bound / 10.0**exponent - 1e-9) * 10.0**exponent:.{digits}e}"
