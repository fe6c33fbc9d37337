"""The gates of one tensor of a run: the errors of distance.py against the limits of verdict.py."""

from __future__ import annotations

import torch

from ..results.result import Gate
from . import distance, verdict
from .evidence import Evidence


def limits(
    evidence: Evidence,
    name: str,
    full: torch.Tensor,
    *pairs: tuple[torch.Tensor, torch.Tensor],
) -> tuple[Gate, ...]:
    """The gates of a tensor, whose limits follow from the single-core reference's error in the same tensor.

    Args:
        evidence: the run.
        name: of the tensor, for the gates.
        full: the ranks' tensor, joined: (..., tokens, features) in the dtype under test.
        pairs: the oracle's tensor, float64, and the single-core reference's, in the dtype under test, of the same
            shape; further pairs are of nearby inputs. The reference's largest error counts.

    Complex numbers count as pairs of real ones. Of a tensor that is zero everywhere, none may be another number.
    """
    full, *reals = map(distance.as_real, (full, *(x for pair in pairs for x in pair)))
    pairs = tuple(zip(reals[::2], reals[1::2], strict=True))
    if not pairs[0][0].any():
        return (verdict.zero_gate(name, float(distance.bounded(full).abs().max()) if full.numel() else 0.0),)
    oracle, single, full = distance.without_constants(*pairs[0], full)
    actual = distance.distance(full, oracle)
    others = (distance.without_constants(*pair) for pair in pairs[1:])
    base = distance.largest(distance.distance(y, x) for x, y in ((oracle, single), *others))
    if evidence.dtype in verdict.SIXTEEN_BITS:
        return (verdict.bfloat16_gate(name, actual, base, sums_in(evidence)),)
    return verdict.error_gates(
        evidence.dtype, name, actual, base, reduction=evidence.reduction, layers=evidence.case.depth
    )


def sums_in(evidence: Evidence) -> verdict.Sums | None:
    """The roundings by sums over ranks in a 16-bit run: the planned sums, or those recorded where there is no plan."""
    if evidence.dtype not in verdict.SIXTEEN_BITS:
        return None
    planned = evidence.case.planned(evidence.tp)
    calls = evidence.runs[0].collectives if planned is None else planned
    return verdict.sums_of(calls, planned=planned is not None)
