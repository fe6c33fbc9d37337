"""The whole way from a component to its verdict in one process, for tests that change something on that way.

The runner is the product's bench: ranks are threads that take turns. Code can be changed with pytest's monkeypatch, a
mistake be put in as a Fault of the registry or as one that `mistake` makes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tp_harness import faults
from tp_harness.case.case import Case
from tp_harness.config.options import Resolved
from tp_harness.faults import Fault
from tp_harness.faults.fault import always
from tp_harness.judge.evidence import Evidence
from tp_harness.judge.gather import RankOutput
from tp_harness.judge.judge import judge
from tp_harness.models.gpt_oss import FAMILY, components
from tp_harness.models.gpt_oss.config import PRESETS
from tp_harness.mutation.bench import Bench
from tp_harness.prepare.prepare import prepare_one
from tp_harness.ranks.job import Task
from tp_harness.results.result import Result

TINY = PRESETS["tiny"]
TARGETS = (*((name, 0) for name in FAMILY.run_by_default), ("attention", 1))

Ranks = dict[int, RankOutput]


def options(**changes: Any) -> Resolved:
    """A small run, resolved."""
    small = Resolved(
        targets=TARGETS,
        degrees=(1,),
        model_name="tiny",
        model=TINY,
        batch=2,
        seq=24,
        dtypes=("float32", "bfloat16"),
        seed=0,
        draws=1,
        init="discriminating",
        kernels="torch",
        checkpoint="",
        case=(),
        out="",
        timeout=120.0,
    )
    if isinstance(changes.get("case"), str):
        changes["case"] = (changes["case"],)
    return replace(small, **changes)


def mistake(apply: Callable[[Case], Case], component: str = "attention") -> Fault:
    """A fault that the registry does not have."""
    return Fault(
        name="of-a-test",
        number=0,
        component=component,
        cause="A test.",
        apply=apply,
        active=always,
        flags=("output.0",),
    )


class Ladder:
    """Targets with their weights and expectations, made once; `run` verifies one of them."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        torch.set_num_threads(1)
        self.bench = Bench(prepare_one(options(**changes)), folder)

    def run(
        self,
        name: str,
        tp: int,
        dtype: str = "float32",
        *,
        twist: Callable[[Evidence], Evidence] = lambda evidence: evidence,
        **changes: Any,
    ) -> Result:
        """The verdict on one target; `twist` edits all that is judged, the others are those of `evidence`."""
        evidence = self.evidence(name, tp, dtype, **changes)
        task = Task(component=name, layer=changes.get("layer", 0), draw=0)
        return judge(twist(evidence), self.bench.blank(task, tp, dtype))

    def evidence(
        self,
        name: str,
        tp: int,
        dtype: str = "float32",
        *,
        layer: int = 0,
        fault: Fault | None = None,
        taps: bool = False,
        repeats: int = 0,
        spoil: Callable[[Ranks], object] = lambda _ranks: None,
    ) -> Evidence:
        """What the ranks left, beside what it must be.

        With `fault` it is put in, with `taps` the intermediate tensors are there too; `spoil` edits what was left.
        """
        task = Task(component=name, layer=layer, draw=0, fault=fault.name if fault else "")
        job = replace(self.bench.job(task, tp, taps=taps), dtypes=(dtype,), unlocked=not taps, repeats=repeats)
        with pytest.MonkeyPatch.context() as patch:
            if fault:
                patch.setitem(faults.BY_NAME, fault.name, fault)  # type: ignore[arg-type]  # a dict
            ranks = self.bench.run(job)
        spoil(ranks)
        return self.bench.evidence(task, tp, dtype, ranks)


def own_ladder(folder: Path, patch: pytest.MonkeyPatch, case: Case, **changes: Any) -> Ladder:
    """A ladder of a case of the test's own, as the component "own" for as long as the patch holds."""
    patch.setitem(components.COMPONENTS, "own", lambda _config, _layer: case)
    folder.mkdir(exist_ok=True)
    return Ladder(folder, targets=(("own", 0),), **changes)


def own_verdicts(folder: Path, patch: pytest.MonkeyPatch, case: Case) -> dict[str, Result]:
    """The verdicts on a case of the test's own at 2 ranks, by dtype."""
    ladder = own_ladder(folder, patch, case)
    return {dtype: ladder.run("own", 2, dtype) for dtype in ("float32", "bfloat16")}
