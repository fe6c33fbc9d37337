"""Mistakes of the KV cache, of sequence and of expert parallel: each is rejected, and its first tensor named."""

from __future__ import annotations

from pathlib import Path

import pytest
from ladder import Ladder
from served_plans import run_by

from tp_harness.diagnosis.localise import first_divergence
from tp_harness.faults import Fault
from tp_harness.models.gpt_oss.faults import cache, expert_parallel, sequence
from tp_harness.models.gpt_oss.faults.expert_parallel import EXCHANGED, REPLICATED
from tp_harness.results.result import Status

PLANS = {"tp": cache.FAULTS, "sp": sequence.FAULTS, "ep": EXCHANGED, "ep-tp": REPLICATED}
BY_PLAN = [pytest.param(plan, fault, id=fault.name) for plan, faults in PLANS.items() for fault in faults]
DEGREES = {"tp": 2, "sp": 2, "ep": 2, "ep-tp": 4}


@pytest.mark.parametrize(("plan", "fault"), BY_PLAN)
def test_a_fault_is_rejected_and_its_first_tensor_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plan: str, fault: Fault
) -> None:
    run_by(monkeypatch, plan)
    ladder, tp = Ladder(tmp_path, targets=((fault.component, 0),), dtypes=("float32",)), DEGREES[plan]
    assert fault.active(ladder.bench.material.subject.config(dtype="float32", tp=tp), tp)
    assert ladder.run(fault.component, tp, fault=fault).status is Status.MISMATCH
    evidence = ladder.evidence(fault.component, tp, fault=fault, taps=True)
    found = first_divergence(evidence, evidence.expectation.run_tapped("float32"))
    assert found is not None
    assert found[0].tensor == fault.flags[0]


def test_there_are_at_least_25_of_them() -> None:
    faults = [*cache.FAULTS, *sequence.FAULTS, *expert_parallel.FAULTS]
    assert len({fault.name for fault in faults}) == len(faults) >= 25
