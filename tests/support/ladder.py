"""The whole way from a component to its verdict in one process: ranks are threads that meet at collectives.

Everything but the processes is the product's own: weights and oracle from `Preparation`, ranks from `run_job`
with real rank files, the verdict from `judge`. Mistakes are put in with `after_build` or pytest's monkeypatch.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tp_harness.case.case import Case
from tp_harness.checkpoint.checkpoint import Checkpoint
from tp_harness.config.options import Resolved
from tp_harness.judge.evidence import Evidence
from tp_harness.judge.gather import RankOutput, read_outputs, remove_outputs
from tp_harness.judge.judge import judge
from tp_harness.models.gpt_oss import FAMILY
from tp_harness.models.gpt_oss.config import PRESETS, ModelConfig
from tp_harness.parallel.group import Group
from tp_harness.prepare.material import Material, Target
from tp_harness.prepare.prepare import Preparation
from tp_harness.ranks import rank
from tp_harness.ranks.job import Job
from tp_harness.results.result import Result, Status

PATIENCE = 120.0  # seconds after which a rank that waits for others gives up
TINY = PRESETS["tiny"]
TARGETS = (*((name, 0) for name in FAMILY.components), ("attention", 1))

Ranks = dict[int, RankOutput]
Edit = Callable[[nn.Module, Case, Checkpoint, Group], None]


class Meeting:
    """Where the ranks of one group exchange tensors."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.barrier = threading.Barrier(size, timeout=PATIENCE)
        self.brought: list[torch.Tensor] = [torch.empty(0)] * size


class ThreadGroup(Group):
    """One rank of a meeting. Sums run in rank order, so that all ranks get the same bits.

    Like gloo it looks at the number of elements and not at shapes: two swapped all_reduces go through.
    """

    def __init__(self, rank: int, meeting: Meeting) -> None:
        super().__init__(rank, meeting.size)
        self.meeting = meeting

    def exchange(self, x: torch.Tensor) -> list[torch.Tensor]:
        self.meeting.brought[self.rank] = x.clone()
        self.meeting.barrier.wait()
        brought = list(self.meeting.brought)
        self.meeting.barrier.wait()
        return brought

    def _all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        brought = self.exchange(x)
        total = brought[0].reshape(-1).clone()
        for part in brought[1:]:
            total += part.reshape(-1)
        return total.view(x.shape)

    def _all_gather(self, x: torch.Tensor, dim: int) -> torch.Tensor:
        return torch.cat(self.exchange(x), dim=dim)

    def _reduce_scatter(self, x: torch.Tensor, dim: int) -> torch.Tensor:
        return self._all_reduce(x).chunk(self.size, dim=dim)[self.rank].contiguous()

    def _broadcast(self, x: torch.Tensor, src: int) -> torch.Tensor:
        return self.exchange(x)[src].clone()


def run_ranks(job: Job) -> None:
    """Run every rank of the job as a thread; raise what the first failing one raised."""
    path, meeting = job.write(), Meeting(job.tp)
    failures: list[BaseException] = []

    def be_rank(number: int) -> None:
        try:
            rank.run_job(path, ThreadGroup(number, meeting), core=f"thread {number}")
        except BaseException as error:  # raised again below, in the main thread
            failures.append(error)
            meeting.barrier.abort()

    threads = [threading.Thread(target=be_rank, args=(number,), daemon=True) for number in range(job.tp)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    causes = [error for error in failures if not isinstance(error, threading.BrokenBarrierError)]
    if failures:
        raise (causes or failures)[0]


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
        timeout=PATIENCE,
    )
    if isinstance(changes.get("case"), str):
        changes["case"] = (changes["case"],)
    return replace(small, **changes)


class Ladder:
    """Targets with their weights and expectations, made once; `run` verifies one of them."""

    def __init__(
        self,
        folder: Path,
        *,
        targets: tuple[tuple[str, int], ...] = TARGETS,
        model: ModelConfig = TINY,
        dtypes: tuple[str, ...] = ("float32", "bfloat16"),
        init: str = "discriminating",
        seed: int = 0,
        repeats: int = 0,
    ) -> None:
        chosen = options(targets=targets, model=model, dtypes=dtypes, init=init, seed=seed, repeats=repeats)
        self.material: Material = Preparation(chosen).material(folder, lambda _text: None)

    def target(self, name: str, layer: int) -> Target:
        return next(t for t in self.material.targets if (t.name, t.layer) == (name, layer))

    def run(
        self,
        name: str,
        tp: int,
        dtype: str = "float32",
        *,
        layer: int = 0,
        repeats: int = 0,
        spoil: Callable[[Ranks], object] = lambda _ranks: None,
        twist: Callable[[Evidence], Evidence] = lambda evidence: evidence,
    ) -> Result:
        """The verdict on one target; `spoil` edits what the ranks left, `twist` all that is judged."""
        evidence = self.evidence(name, tp, dtype, layer=layer, spoil=spoil, repeats=repeats)
        blank = Result(
            component=name,
            tp=tp,
            backend="threads",
            dtype=dtype,
            layer=layer,
            draws=1,
            seed=0,
            status=Status.SKIPPED,
            reason="not judged",
        )
        return judge(twist(evidence), blank)

    def evidence(
        self,
        name: str,
        tp: int,
        dtype: str = "float32",
        *,
        layer: int = 0,
        taps: bool = False,
        repeats: int = 0,
        spoil: Callable[[Ranks], object] = lambda _ranks: None,
    ) -> Evidence:
        """What the ranks left, beside what it must be; with `taps` also the intermediate tensors."""
        target = self.target(name, layer)
        job = replace(self.material.job(tp, (target,)), dtypes=(dtype,), unlocked=not taps, taps=taps, repeats=repeats)
        task = job.tasks[0]
        run_ranks(job)
        ranks = read_outputs(job, task)
        remove_outputs(job, task)
        spoil(ranks)
        return Evidence(
            case=job.subject.case(task, dtype=dtype, tp=tp),
            tp=tp,
            dtype=dtype,
            expectation=self.material.expectations[task],
            ranks=ranks,
            checkpoint=self.material.checkpoints[0],
        )


def after_build(monkeypatch: pytest.MonkeyPatch, edit: Edit) -> None:
    """Let `edit` change every rank's module after it was built, loaded, and its shards were recorded."""
    honest = rank.build

    def build(case: Case, checkpoint: Checkpoint, dtype: torch.dtype, group: Group) -> tuple[nn.Module, dict[str, Any]]:
        module, held = honest(case, checkpoint, dtype, group)
        edit(module, case, checkpoint, group)
        return module, held

    monkeypatch.setattr(rank, "build", build)


def put(module: nn.Module, name: str, value: torch.Tensor) -> None:
    """Replace a parameter."""
    owner, _, leaf = name.rpartition(".")
    with suppress(AttributeError):
        delattr(module.get_submodule(owner), leaf)
    parameter = nn.Parameter(value.clone(), requires_grad=False)
    module.get_submodule(owner).register_parameter(leaf, parameter)
