"""One fault at one degree in one dtype: does the verdict reject it, for which reasons, and what does it point at?"""

from __future__ import annotations

from collections.abc import Iterable

from ..diagnosis.explain import explain
from ..faults import Fault
from ..judge.evidence import Evidence
from ..judge.gather import RankOutput
from ..judge.judge import judge
from ..parallel.placements import same_bits
from ..ranks.job import Task
from ..results.mutation_score import CAUGHT, INERT, MISSED, WRONG, Trial
from ..results.result import Result
from .bench import Bench, RanksFailedError

Ranks = dict[int, RankOutput]


def try_faults(bench: Bench, faults: Iterable[Fault], tp: int) -> list[Trial]:
    """Every fault in every dtype of the bench's options, compared with one clean run per component and layer."""
    clean: dict[tuple[str, int], Ranks] = {}
    trials = []
    for fault in faults:
        key = (fault.component, fault.layer)
        task = Task(component=fault.component, layer=fault.layer, draw=0)
        if key not in clean:
            clean[key] = bench.run(bench.job(task, tp, taps=True))
        trials += _try(bench, fault, tp, clean[key])
    return trials


def _try(bench: Bench, fault: Fault, tp: int, clean: Ranks) -> list[Trial]:
    task = Task(component=fault.component, layer=fault.layer, draw=0, fault=fault.name)
    try:
        ranks = bench.run(bench.job(task, tp, taps=True))
    except RanksFailedError as error:
        reason = f"a fault must leave outputs to judge, but {error}"
        return [_trial(fault, tp, dtype, WRONG, reason=reason) for dtype in bench.options.dtypes]
    return [
        _judge(bench.evidence(task, tp, dtype, ranks), bench.blank(task, tp, dtype), fault, clean, bench)
        for dtype in bench.options.dtypes
    ]


def _judge(evidence: Evidence, blank: Result, fault: Fault, clean: Ranks, bench: Bench) -> Trial:
    tp, dtype = evidence.tp, evidence.dtype
    config = bench.material.subject.config(dtype=dtype, tp=tp)
    active, changed = fault.active(config, tp), first_change(evidence, clean)
    if not changed and (not active or dtype not in fault.visible_in):
        return _trial(fault, tp, dtype, INERT)
    if not changed or not active:
        says = "inert" if changed else "active"
        reason = f"declared {says} at tp {tp}, but {changed or 'no bit'} differs from the clean run"
        return _trial(fault, tp, dtype, WRONG, reason=reason)
    result = judge(evidence, blank)
    rejected = result.rejections
    result = explain(evidence, result)
    found = result.first_divergence
    return _trial(
        fault,
        tp,
        dtype,
        CAUGHT if set(rejected) - {"reassembly"} else MISSED,
        status=result.status.value,
        reason=result.reason,
        checks=tuple(rejected),
        kinds=tuple(dict.fromkeys(rejected.values())),
        first=found.tensor if found else "",
        causes=tuple(cause.name for cause in result.diagnosis),
    )


def first_change(evidence: Evidence, clean: Ranks) -> str:
    """The first tensor or schedule of any rank that is not the clean run's, bit for bit; "" if there is none."""
    for rank, output in evidence.ranks.items():
        right = clean[rank]
        for key in dict.fromkeys((*right.tensors, *output.tensors)):
            pair = [tensors.tensors.get(key) for tensors in (output, right)]
            if key.dtype == evidence.dtype and (pair[0] is None or pair[1] is None or not same_bits(pair[0], pair[1])):
                return f"{key} of rank {rank}"
        if output.report.runs[evidence.dtype].collectives != right.report.runs[evidence.dtype].collectives:
            return f"the schedule of rank {rank}"
    return ""


def _trial(fault: Fault, tp: int, dtype: str, outcome: str, **found: object) -> Trial:
    return Trial(
        fault=fault.name,
        tp=tp,
        dtype=dtype,
        outcome=outcome,
        must=dtype in fault.visible_in,
        expected=fault.flags[0],
        signature=fault.signature or "",
        **found,  # type: ignore[arg-type]  # fields of Trial
    )
