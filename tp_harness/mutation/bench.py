"""Many short runs on one set of weights and expectations: ranks are local threads, a start costs milliseconds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from ..backends import run_to_end
from ..backends.local import LocalSession
from ..config.options import Resolved
from ..judge.evidence import Evidence
from ..judge.gather import RankOutput, read_outputs, remove_outputs
from ..launch import LaunchOutcome
from ..prepare.prepare import Preparation, prepare_one
from ..ranks.job import Job, Task
from ..results.result import Result

POLL_SECONDS = 0.001


@contextmanager
def open_bench(options: Resolved) -> Iterator[Bench]:
    """Open a bench in a folder of its own, removed at the end; from then on torch computes with one thread."""
    torch.set_num_threads(1)
    preparation = prepare_one(options)
    with preparation.folder() as folder:
        yield Bench(preparation, folder)


class RanksFailedError(RuntimeError):
    """The ranks ended without leaving their outputs."""

    def __init__(self, outcome: LaunchOutcome) -> None:
        super().__init__(outcome.message)
        self.outcome = outcome


class Bench:
    """Runs single tasks of the options' targets at any degree that divides them.

    Args:
        preparation: of a run; the degrees of its options say at which ones plans are checked beforehand.
        folder: for weights, inputs, outputs and logs; the caller removes it.
    """

    def __init__(self, preparation: Preparation, folder: Path) -> None:
        self.options, self.folder = preparation.options, folder
        material = preparation.material(folder, lambda _step: None)
        expectations = {
            task: replace(expectation, kept={})  # one for many results
            for task, expectation in material.expectations.items()
        }
        self.material = replace(material, expectations=expectations)

    def job(self, task: Task, tp: int, *, taps: bool = False) -> Job:
        """A job of one task on `tp` ranks."""
        return replace(self.material.job(tp, ()), tasks=(task,), unlocked=False, taps=taps)

    def run(self, job: Job) -> dict[int, RankOutput]:
        """Run a job of one task; what its ranks left, by rank.

        Raises:
            RanksFailedError: they crashed or hung.
        """
        (task,) = job.tasks
        with LocalSession() as session:
            logs, timeout = self.folder / "logs", self.options.timeout
            outcome = run_to_end(session, job, log_dir=logs, timeout=timeout, poll_seconds=POLL_SECONDS)
        outputs = read_outputs(job, task)
        remove_outputs(job, task)
        if not outcome.ok:
            raise RanksFailedError(outcome)
        return outputs

    def evidence(self, task: Task, tp: int, dtype: str, ranks: dict[int, RankOutput]) -> Evidence:
        """What a verdict on the task on `tp` ranks in `dtype` rests on; `ranks` is what each rank left."""
        return Evidence.of(self.material, task, tp, dtype, ranks)

    def blank(self, task: Task, tp: int, dtype: str) -> Result:
        """A Result of the task on `tp` ranks, to be filled in."""
        return self.material.blank(task, tp, dtype, backend="local")
