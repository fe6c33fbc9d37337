"""One task at one degree and dtype, from the ranks' tensors to a Result: the ladder of checks in order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from . import compare, verdict
from .evidence import Evidence
from .exact import anything_sharded, exact_checks
from .form import form, presence
from .gather import Joined, join, output_names
from .limits import limits
from .placements import KVHeads, Shard
from .program import finding, finding_checks, program_checks, shared_program
from .result import Gate, Result, Status, Worst
from .routers import router_flips, unlocked_statement
from .taps import LOGITS, tap_name


def judge(evidence: Evidence, blank: Result) -> Result:
    """Fill in `blank` (a Result that names the task) with the verdict on the evidence."""
    blank = replace(blank, ranks=tuple(evidence.ranks[r].record(evidence.dtype) for r in sorted(evidence.ranks)))
    blank = replace(blank, program=shared_program(evidence))
    found = finding(evidence)
    if found:
        checks = finding_checks(evidence, found)
        reason = "; ".join(f"{check.name}: {check.detail}" for check in checks if not check.passed)
        return replace(blank, status=Status.MISMATCH, reason=reason, checks=checks, ranks=())  # nothing was measured
    basic = presence(evidence) or form(evidence)
    if basic:
        return replace(blank, status=basic[0], reason=basic[1])
    names = output_names(evidence.case)
    joined = {
        name: join(placement, evidence.shards(name))
        for name, placement in zip(names, evidence.case.outputs, strict=True)
    }
    checks = (*program_checks(evidence), *exact_checks(evidence, joined))
    gates = tuple(gate for i, name in enumerate(names) for gate in _gates(evidence, i, name, joined[name].full))
    flips = router_flips(evidence)
    gates += _router_gates(evidence)
    status, reason = verdict.decide(checks, gates, flips, void=_void(evidence, joined))
    return replace(
        blank,
        status=status,
        reason=reason,
        gate=verdict.nearest_gate(gates),
        gates=gates,
        checks=checks,
        worst=_worst(evidence, joined, gates),
        flips=flips,
        unlocked=unlocked_statement(evidence, flips),
        notes=_notes(evidence, gates),
    )


def _gates(evidence: Evidence, index: int, name: str, full: torch.Tensor) -> tuple[Gate, ...]:
    oracle = evidence.expectation.oracle.outputs[index]
    baseline = evidence.expectation.baselines[evidence.dtype].outputs[index]
    return limits(evidence, name, full, oracle, baseline)


def _router_gates(evidence: Evidence) -> tuple[Gate, ...]:
    """float32 router logits have gates of their own; in bfloat16 the flips' margins judge the router."""
    if evidence.dtype != "float32":
        return ()
    gates: tuple[Gate, ...] = ()
    for router in evidence.case.routing:
        name = tap_name(router, LOGITS)
        oracle = evidence.expectation.oracle.routing[name]
        baseline = evidence.expectation.baselines[evidence.dtype].routing[name]
        gates += limits(evidence, name, evidence.shards(name)[0], oracle, baseline)
    return gates


def _void(evidence: Evidence, joined: Mapping[str, Joined]) -> str | None:
    """Why a run that passed proves nothing, if so: nothing was sharded, or a control passed."""
    if evidence.tp > 1 and not evidence.case.replicated and not anything_sharded(evidence):
        return f"nothing was sharded at tp {evidence.tp}: every rank held the full parameters and inputs"
    for i, (name, output) in enumerate(joined.items()):
        if all(gate.passed for gate in _gates(evidence, i, name, compare.roll(output.full))):
            return f"the control passed: {name} rolled by one element was not rejected"
    return None


def _worst(evidence: Evidence, joined: Mapping[str, Joined], gates: tuple[Gate, ...]) -> Worst | None:
    """The worst element of the output whose gate is nearest to its limit."""
    names = list(joined)
    ranked = sorted(gates, key=verdict.severity, reverse=True)
    at = next((i for gate in ranked for i, name in enumerate(names) if gate.metric.endswith(name)), 0)
    placement, oracle = evidence.case.outputs[at], evidence.expectation.oracle.outputs[at]
    dim = placement.dim if isinstance(placement, (Shard, KVHeads)) else None
    return compare.worst_element(names[at], joined[names[at]].full, oracle, evidence.tp, dim=dim)


def _notes(evidence: Evidence, gates: tuple[Gate, ...]) -> tuple[str, ...]:
    notes = [
        f"{gate.metric} is {gate.value:.2f}: more precise than the single-core reference"
        for gate in gates
        if gate.metric.startswith("R of") and 0 < gate.value < verdict.RATIO_NOTE
    ]
    ranks = verdict.reduced_in_16_bits(evidence.ranks[0].collectives(evidence.dtype))
    if ranks > 1:
        notes.append(f"sums over {ranks} ranks ran in 16 bits: the error grows with the degree; reduce in float32")
    return tuple(notes)
