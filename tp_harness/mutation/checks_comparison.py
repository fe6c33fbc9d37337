"""The same faults and the same clean runs, judged by this tool and by the checks of other_checks.py."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

from ..config.dtypes import EXACT, FLOATS
from ..config.options import Resolved
from ..faults import FAULTS, find_fault
from ..judge.evidence import Evidence
from ..judge.gather import join
from ..judge.judge import judge
from ..prepare.oracle import ReferenceRun, run_unlocked
from ..ranks.job import Task
from ..system.process_pool import in_processes
from ..version import __version__
from .bench import Bench, open_bench
from .checks_page import Contest, Entry
from .kill_score import Progress, Unit, units
from .mutant import first_change
from .other_checks import EXACTLY, OURS, PEERS, Seen

Benches = dict[str, Bench]  # by initialisation
Left = dict[tuple[str, str], Evidence]  # by initialisation and dtype


def hold(options: Resolved, draws: int, progress: Progress) -> Contest:
    """One entry per fault and degree where it changes any bit, and one per clean run: which checks reject it.

    Args:
        options: degrees, model and seed; exact arithmetic, float32 and bfloat16 are run.
        draws: clean runs of each component, layer and degree, the first `draws` seeds.
        progress: told what is done.
    """
    parts = [(unit, 0) for unit in units(FAULTS, options)]
    once = {(unit.tp, unit.options.targets): unit for unit, _ in parts}
    parts += [(unit, seed) for seed in range(1, draws) for unit in once.values()]
    parts.sort(key=lambda part: -part[0].cost / (1 if part[1] == 0 else len(part[0].faults)))
    entries: set[Entry] = set()
    for done, found in enumerate(in_processes(run_part, parts), 1):
        entries |= set(found)
        progress(f"{done} of {len(parts)} parts")
    return Contest(
        version=__version__,
        model=options.model_name,
        command=shlex.join(["tp-harness", *sys.argv[1:]]),
        checks=(*(peer.name for peer in PEERS), EXACTLY, OURS),
        faults=tuple(fault.name for fault in FAULTS),
        entries=tuple(sorted(entries, key=lambda e: (e.fault, e.component, e.layer, e.tp, e.seed))),
    )


def run_part(part: tuple[Unit, int]) -> list[Entry]:
    """The entries of one unit of work and seed, in this process; of a seed above 0, clean runs alone."""
    unit, seed = part
    options = replace(unit.options, seed=unit.options.seed + seed)
    entries: list[Entry] = []
    with ExitStack() as stack:
        benches = {
            init: stack.enter_context(open_bench(replace(options, init=init, dtypes=dtypes)))
            for init, dtypes in (("discriminating", (EXACT, *FLOATS)), ("constant", FLOATS))
        }
        for component, layer in options.targets:
            task = Task(component=component, layer=layer, draw=0)
            clean = _run(benches, task, unit.tp)
            entries.append(_entry(benches, task, unit.tp, clean))
            faults = [find_fault(name) for name in unit.faults] if seed == 0 else []
            for fault in faults:
                if (fault.component, fault.layer) == (component, layer):
                    wrong = replace(task, fault=fault.name)
                    left = _run(benches, wrong, unit.tp)
                    if _differs(left, clean):
                        entries.append(_entry(benches, wrong, unit.tp, left))
    return entries


def _run(benches: Benches, task: Task, tp: int) -> Left:
    found: Left = {}
    for init, bench in benches.items():
        ranks = bench.run(replace(bench.job(task, tp), unlocked=True))
        found |= {(init, dtype): bench.evidence(task, tp, dtype, ranks) for dtype in bench.options.dtypes}
    return found


def _differs(left: Left, clean: Left) -> bool:
    """Whether any rank's tensors or schedule differ in any bit, with the weights that show it."""
    pairs = ((left["discriminating", dtype], dict(clean["discriminating", dtype].ranks)) for dtype in FLOATS)
    return any(first_change(evidence, ranks) for evidence, ranks in pairs)


def _entry(benches: Benches, task: Task, tp: int, left: Left) -> Entry:
    bench = benches["discriminating"]
    seen = {key: list(_seen(left[key])) for key in {(peer.init, peer.dtype) for peer in PEERS}}
    rejects = [p.name for p in PEERS if not all(p.passes(output) for output in seen[p.init, p.dtype])]
    ours = {dtype: judge(left["discriminating", dtype], bench.blank(task, tp, dtype)) for dtype in (EXACT, *FLOATS)}
    if ours[EXACT].status.failed:
        rejects.append(EXACTLY)
    if not all(ours[dtype].status.passed for dtype in FLOATS):
        rejects.append(OURS)
    return Entry(
        fault=task.fault,
        component=task.component,
        layer=task.layer,
        tp=tp,
        seed=bench.options.seed,
        rejected_by=tuple(rejects),
    )


def _seen(evidence: Evidence) -> Iterator[Seen]:
    """Rank 0's outputs beside the single-core model's, each side with its own routing."""
    alone: ReferenceRun = run_unlocked(evidence.expectation.run_tapped(evidence.dtype), evidence.case, evidence.dtype)
    for name, placement in evidence.outputs.items():
        locked = evidence.without(name, "unlocked")
        full = join(placement, evidence.shards(name, "locked" if locked else "unlocked")).full
        yield Seen(actual=full, expected=alone.outputs[name], oracle=evidence.expectation.oracle.outputs[name])
