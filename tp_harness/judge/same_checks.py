"""Calls of the sharded module that must give the same: a prompt at once and in chunks, a batch and each row alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from ..case.calls import Same
from ..config.dtypes import EXACT
from ..results.gate import RATIO, REL_L2
from ..results.result import Check, Gate
from ..results.tensor_names import without_call
from .distance import as_real, bounded, distance
from .evidence import Evidence
from .gather import Joined

SAME = "same"
EXACTLY = 1e-9  # of a run in exact arithmetic: what float64 may round in its shadows


def same_checks(evidence: Evidence, joined: Mapping[str, Joined], gates: Iterable[Gate] = ()) -> tuple[Check, ...]:
    """Check each `Same` of the case on the ranks' own outputs; `gates` are those of the run's outputs."""
    gates = tuple(gates)
    names = dict.fromkeys(name for each in evidence.case.same for name in each.names)
    limits = {name: max((_limit(evidence, gate, name) for gate in gates), default=0.0) for name in names}
    return tuple(_check(evidence, joined, each, limits) for each in evidence.case.same)


def _limit(evidence: Evidence, gate: Gate, name: str) -> float:
    """The largest relative error of an output that a gate lets through; 0 where it is another's.

    A gate of R may be that of the output over all calls.
    """
    if gate.kind == REL_L2 and gate.tensor == name:
        return gate.limit
    if gate.kind != RATIO or without_call(gate.tensor) != without_call(name):
        return 0.0
    runs = (evidence.expectation.baselines[evidence.dtype], evidence.expectation.oracle)
    return gate.limit * distance(*(run.outputs[name] for run in runs)).rel_l2


def _check(evidence: Evidence, joined: Mapping[str, Joined], same: Same, limits: Mapping[str, float]) -> Check:
    """Whether two ways to one result agree: each may be off by its limit."""
    whole, *parts = (bounded(as_real(joined[name].full)) for name in same.names)
    dim = same.dim % joined[same.names[0]].full.ndim
    said = f"{same.names[0]} and {', '.join(same.names[1:])} joined along dimension {dim}"
    together = torch.cat(parts, dim) if len({x.shape[:dim] + x.shape[dim + 1 :] for x in parts}) == 1 else parts[0]
    if together.shape != whole.shape:
        detail = f"{said} have shapes {list(whole.shape)} and {list(together.shape)}"
        return Check(name=SAME, passed=False, detail=detail)
    apart = float((whole - together).norm() / whole.norm().clamp(min=1e-300))
    limit = limits.get(same.names[0], 0.0) + max(limits.get(name, 0.0) for name in same.names[1:])
    limit = EXACTLY if evidence.dtype == EXACT else limit
    return Check(name=SAME, passed=apart <= limit, detail=f"{said} are {apart:.1e} apart, limit {limit:.1e}")
