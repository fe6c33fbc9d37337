"""What verdicts in exact arithmetic rest on: as a claim, as lines and as a table. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from ..results.proof import at_most
from ..results.result import Proof, Result, Status
from .cells import Table


def claim(results: Sequence[Result]) -> str:
    """What the proofs of a run claim, and what they do not; "" without proofs."""
    primes = list(dict.fromkeys(str(p) for result in results if result.proof for p in result.proof.primes))
    if not primes:
        return ""
    return (
        f"Reference and ranks computed with residues modulo {', '.join(primes)}, which were drawn at random: there "
        "is no rounding, and equal functions give equal residues. PROVED: all residues are equal, so that the sharded "
        "function is the reference's on the branches that were taken: the same experts, clamps and masks. The bound is "
        "the highest probability that another function is accepted, one that differs in one element that an adversary "
        "chose; an ordinary mistake has the typical one. This says nothing of rounding, overflow or a device's "
        "arithmetic, which the floating-point rows measure."
    )


def lines(result: Result) -> list[str]:
    """What a verdict in exact arithmetic rests on, a line for each thing; none without a proof."""
    proof = result.proof
    if proof is None:
        return []
    said = [
        f"{proof.draws} point{'' if proof.draws == 1 else 's'} modulo {' and '.join(map(str, proof.primes))}",
        f"the float64 shadows of the outputs differ by {proof.shadow:.1e} at most",
    ]
    if math.isfinite(proof.margin):
        said.append(f"smallest margin of a decision: {proof.margin:.1e}, {proof.margin_of}")
    if result.status.passed:
        said.append(f"another function is accepted with probability {at_most(proof.bound, 1)} at most, typically "
                    f"{proof.typical:.1e}")  # fmt: skip
    said += [f"not decided: {text}" for text in _undecided(result)]
    return said + [f"branches taken: {text}" for text in proof.coverage]


def table(results: Iterable[Result]) -> Table:
    """What each verdict in exact arithmetic rests on."""
    headers = ("component", "layer", "tp", "verdict", "points", "bound", "typical", "smallest margin", "shadows differ",
               "branches taken, or not decided")  # fmt: skip
    return headers, [
        (result.label, str(result.layer), str(result.tp), result.status.value, str(proof.draws),
         *_probabilities(result), _margin(proof), f"{proof.shadow:.1e}",
         "; ".join((*_undecided(result), *proof.coverage)) or "-")
        for result in _by_component(results)
        if (proof := result.proof)
    ]  # fmt: skip


def _by_component(results: Iterable[Result]) -> list[Result]:
    """The results of a component and layer together, in the order of the run."""
    results = tuple(results)
    order = list(dict.fromkeys((result.label, result.layer) for result in results))
    return sorted(results, key=lambda result: order.index((result.label, result.layer)))


def _undecided(result: Result) -> tuple[str, ...]:
    return result.proof.undecided if result.proof and result.status is Status.NOT_PROVED else ()


def _probabilities(result: Result) -> tuple[str, str]:
    """The highest and the typical probability that what was proved is another function."""
    if result.proof is None or not result.status.passed:
        return "-", "-"
    return at_most(result.proof.bound, 1), f"{result.proof.typical:.1e}"


def _margin(proof: Proof) -> str:
    """The decision that is nearest to a tie."""
    return f"{proof.margin:.1e}, {proof.margin_of}" if math.isfinite(proof.margin) else "no decision"
