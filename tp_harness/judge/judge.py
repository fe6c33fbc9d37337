"""The Result of one task at one degree and dtype: all checks of the ranks' tensors, in order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from ..case.taps import CHOSEN
from ..config.dtypes import EXACT
from ..prepare.expectation import Pairs
from ..prepare.oracle import ReferenceRun
from ..results.gate import RATIO
from ..results.result import Gate, Result, Status, Worst
from ..results.tensor_names import without_call
from . import distance, verdict
from .evidence import Evidence
from .exact_checks import WHOLE, anything_sharded, exact_checks, is_measured, whole_number_checks
from .gates import limits
from .gather import Joined
from .program_checks import finding, finding_checks, program_checks, shared_program
from .proofs import prove
from .router_flips import router_flips, unlocked_statement
from .same_checks import same_checks
from .shape_checks import form, idle_because, presence

SCATTER_ELEMENTS = 65_536
SCATTER_FACTOR = 30.0
SCATTER = (
    "the limits are those of the largest single-core error at 8 more inputs nearby: on so few elements it scatters"
)

FLOAT32_INSIDE = (
    "a part that is computed in float32 looks like this, so that float64 decides nothing; the verdict in float32 does"
)


ROUNDED_BEFORE = "whole numbers that follow from rounded ones may differ so in 16 bits; the verdict in float32 decides"


def judge(evidence: Evidence, blank: Result) -> Result:
    """Fill in `blank` (a Result that names the task) with the verdict on the evidence."""
    blank = replace(blank, ranks=tuple(evidence.ranks[r].report.record(evidence.dtype) for r in sorted(evidence.ranks)))
    blank = replace(blank, program=shared_program(evidence))
    found = finding(evidence)
    if found:
        checks = finding_checks(evidence, found)
        reason = "; ".join(f"{check.name}: {check.detail}" for check in checks if not check.passed)
        return replace(blank, status=Status.MISMATCH, reason=reason, checks=checks, ranks=())  # nothing was measured
    if evidence.dtype == EXACT:
        return prove(evidence, blank)
    basic = presence(evidence) or form(evidence)
    if basic:
        return replace(blank, status=basic[0], reason=basic[1])
    joined = evidence.joined
    checks = (*program_checks(evidence), *exact_checks(evidence, joined), *whole_number_checks(evidence, joined))
    gates = _all_gates(evidence, joined)
    nearby = evidence.expectation.run_nearby(evidence.dtype) if _may_scatter(evidence, gates) else ()
    if nearby:
        gates = _all_gates(evidence, joined, nearby)
    checks = (*checks, *same_checks(evidence, joined, gates))
    flips = router_flips(evidence)
    void = _void(evidence, joined, nearby)
    status, reason = verdict.decide(checks, gates, flips, void=void)
    free, otherwise = _free(evidence), verdict.rejected_otherwise(checks, flips)
    if free and not void and not otherwise:
        if evidence.dtype in verdict.SIXTEEN_BITS:
            status, reason = Status.UNDECIDED, f"{reason}; {free}"
        elif status is Status.MISMATCH:  # in more digits no other check judges the outputs
            status, reason = Status.VOID, f"{reason}; {free}"
    if (
        status is Status.MISMATCH
        and [c.name for c in checks if not c.passed] == [WHOLE]
        and _only_rounds(evidence, gates)
    ):
        status, reason = Status.UNDECIDED, f"{reason}; {ROUNDED_BEFORE}"
    if status is Status.MISMATCH and not otherwise and _computes_in_float32(evidence, gates):
        status, reason = Status.UNDECIDED, f"{reason}; {FLOAT32_INSIDE}"
    # of a wrong choice of experts, or a control that passed, no element is the worst
    of_outputs = [gate for gate in gates if gate.tensor in joined]
    idle = status is not Status.PASS and all(gate.passed for gate in of_outputs) and all(c.passed for c in checks)
    return replace(
        blank,
        status=status,
        reason=reason,
        gate=verdict.nearest_gate(gates),
        gates=gates,
        checks=checks,
        worst=None if idle else _worst(evidence, joined, gates),
        flips=flips,
        unlocked=unlocked_statement(evidence, flips),
        notes=(*_notes(evidence, gates), *((SCATTER,) if nearby else ())),
    )


def _all_gates(evidence: Evidence, joined: Mapping[str, Joined], nearby: Pairs = ()) -> tuple[Gate, ...]:
    if evidence.dtype in verdict.SIXTEEN_BITS and len(evidence.expectation.calls.each) > 1:
        return _over_calls(evidence, joined, nearby)
    of_outputs = (_gates(evidence, name, output.full, nearby) for name, output in joined.items() if is_measured(output))
    return (*(gate for gates in of_outputs for gate in gates), *_router_gates(evidence, nearby))


def _over_calls(evidence: Evidence, joined: Mapping[str, Joined], nearby: Pairs) -> tuple[Gate, ...]:
    """The gates of R of each output over all calls: in the few tokens of one call, R is a matter of chance."""
    paths: dict[str, list[str]] = {}
    for name, output in joined.items():
        if is_measured(output):
            paths.setdefault(without_call(name), []).append(name)
    found: tuple[Gate, ...] = ()
    for names in paths.values():

        def whole(run: Mapping[str, torch.Tensor], names: list[str] = names) -> torch.Tensor:
            return torch.cat([distance.as_real(run[name]).flatten() for name in names])

        full = {name: joined[name].full for name in names}
        pairs = [(whole(oracle.outputs), whole(single.outputs)) for oracle, single in (_own(evidence), *nearby)]
        (gate,) = limits(evidence, _farthest(evidence, full), whole(full), *pairs)
        found += (replace(gate, reason=f"{gate.reason}; over {len(names)} calls"),)
    return found


def _farthest(evidence: Evidence, full: Mapping[str, torch.Tensor]) -> str:
    """The output that is farthest from the oracle's, by name."""
    oracle = evidence.expectation.oracle.outputs
    return max(
        full,
        key=lambda name: float(
            (distance.bounded(distance.as_real(full[name])) - distance.bounded(distance.as_real(oracle[name]))).norm()
        ),
    )


def _may_scatter(evidence: Evidence, gates: tuple[Gate, ...]) -> bool:
    """Whether a gate fails by so little, on so few elements, that the single-core error may be small by chance.

    An error that sums many roundings is about as large at all inputs; one of few roundings is not, nor one that a
    strongly non-linear function has amplified.
    """
    if evidence.dtype == "float64":  # its limits follow from no measured error
        return False
    size = max(output.numel() for output in evidence.expectation.oracle.outputs.values())
    worst = max((verdict.severity(gate) for gate in gates if not gate.undecided), default=0.0)
    return size <= SCATTER_ELEMENTS and 1.0 < worst < SCATTER_FACTOR


def _gates(evidence: Evidence, name: str, full: torch.Tensor, nearby: Pairs = ()) -> tuple[Gate, ...]:
    pairs = [(oracle.outputs[name], single.outputs[name]) for oracle, single in (_own(evidence), *nearby)]
    return limits(evidence, name, full, *pairs)


def _router_gates(evidence: Evidence, nearby: Pairs = ()) -> tuple[Gate, ...]:
    """The gates of the router logits; none in bfloat16, where the margins of flips judge the router."""
    if evidence.dtype in verdict.SIXTEEN_BITS:
        return ()
    gates: tuple[Gate, ...] = ()
    for router in evidence.case.routers:
        name = router.logits
        if name in router.shown:
            full = evidence.of_router(router, name)
            pairs = [(oracle.routing[name], single.routing[name]) for oracle, single in (_own(evidence), *nearby)]
            gates += limits(evidence, name, full, *pairs)
    return gates


def _free(evidence: Evidence) -> str:
    """The routers with which a rank or the single core continued with other experts than the oracle's; "" if none."""
    free = {name for run in evidence.runs.values() for name in run.unlocked}
    free |= set(evidence.expectation.baselines[evidence.dtype].unlocked)
    if not free:
        return ""
    called = ", ".join(name or evidence.case.name for name in sorted(free))
    return f"router {called} chose others by rounding, and no torch.topk or submodule `{CHOSEN}` let them be replaced"


def _computes_in_float32(evidence: Evidence, gates: tuple[Gate, ...]) -> bool:
    """Whether a user's module in float64 may be right, if it computes some part in float32; a family's does not."""
    own = evidence.dtype == "float64" and not evidence.case.on_meta
    return own and verdict.as_float32_rounds(gates, evidence.reduction)


def _only_rounds(evidence: Evidence, gates: tuple[Gate, ...]) -> bool:
    """Whether only whole numbers differ in a run in 16 bits, where they may follow from numbers that were rounded."""
    return evidence.dtype in verdict.SIXTEEN_BITS and all(gate.passed for gate in gates)


def _own(evidence: Evidence) -> tuple[ReferenceRun, ReferenceRun]:
    return evidence.expectation.oracle, evidence.expectation.baselines[evidence.dtype]


def _void(evidence: Evidence, joined: Mapping[str, Joined], nearby: Pairs) -> str | None:
    """Why a run that passed proves nothing: nothing was sharded, or a control passed. None if it proves something."""
    if evidence.tp > 1 and not evidence.case.replicated and not anything_sharded(evidence):
        return f"nothing was sharded at tp {evidence.tp}: every rank held the full parameters and inputs"
    for name, output in joined.items():
        if not is_measured(output) or idle_because(name, evidence.expectation.oracle.outputs[name]):
            continue
        if all(gate.passed for gate in _gates(evidence, name, distance.roll(output.full), nearby)):
            return f"the control passed: {name} rolled by one element was not rejected"
    return None


def _worst(evidence: Evidence, joined: Mapping[str, Joined], gates: tuple[Gate, ...]) -> Worst | None:
    """The worst element of the output whose gate is nearest to its limit."""
    ranked = sorted(gates, key=verdict.severity, reverse=True)
    name = next((gate.tensor for gate in ranked if gate.tensor in joined), next(iter(joined)))
    return evidence.worst(name, joined[name].full, evidence.expectation.oracle.outputs[name])


def _notes(evidence: Evidence, gates: tuple[Gate, ...]) -> tuple[str, ...]:
    notes = [
        f"{gate.metric} is {gate.value:.2f}: more precise than the single-core reference"
        for gate in gates
        if gate.kind == RATIO and 0 < gate.value < verdict.RATIO_NOTE
    ]
    oracles = evidence.expectation.oracle.outputs
    notes += [why for name, oracle in oracles.items() if (why := idle_because(name, oracle))]
    notes += _loaded_over(evidence)
    if verdict.reduced_in_16_bits(evidence.runs[0].collectives) > 1:
        notes.append("sums over ranks ran in 16 bits: the error grows with the degree; reduce in float32")
    return tuple(notes)


def _loaded_over(evidence: Evidence) -> list[str]:
    """A note on each buffer into which a rank had built other values than the checkpoint then gave it."""
    found: dict[str, int] = {}
    for rank, run in evidence.runs.items():
        for name, held in run.parameters.items():
            if not held.rebuilt:
                found.setdefault(name, rank)
    return [
        f"rank {rank} builds other values of the buffer {name} than those that are loaded over it: whether it builds "
        "them rightly is not seen"
        for name, rank in found.items()
    ]
