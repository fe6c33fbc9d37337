"""The limits of one tensor of a run: the numbers of distance.py judged by the rules of verdict.py."""

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
    """The gates of a tensor, measured by the error that the single-core reference makes in the same place.

    Args:
        evidence: the run.
        name: what the gates call the tensor.
        full: the ranks', joined; (..., tokens, features).
        pairs: what it must be, in float64, and what the single-core reference gives in the dtype under test; and
            perhaps both again at other inputs. The reference's largest error counts.
    """
    oracle, single, full = distance.without_constants(*pairs[0], full)
    actual = distance.distance(full, oracle, evidence.tp)
    others = (distance.without_constants(*pair) for pair in pairs[1:])
    base = distance.largest(distance.distance(y, x, evidence.tp) for x, y in ((oracle, single), *others))
    if evidence.dtype == "float32":
        return verdict.float32_gates(name, actual, base, evidence.reduction, evidence.case.depth)
    return (verdict.bfloat16_gate(name, actual, base, sums_in(evidence)),)


def sums_in(evidence: Evidence) -> verdict.Sums | None:
    """The sums over ranks of a 16-bit run, which round too; of a planned run, only what was meant is allowed for."""
    if evidence.dtype == "float32":
        return None
    planned = evidence.case.planned(evidence.tp)
    calls = evidence.runs[0].collectives if planned is None else planned
    return verdict.sums_of(calls, planned=planned is not None)
