"""The material that all degrees of a run share: targets, weights on disk, inputs, and expected outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..checkpoint.checkpoint import Checkpoint
from ..config.dtypes import draws_in
from ..config.options import Resolved
from ..ranks.job import Job, Subject, Task
from ..results.result import Result, Status
from .control_places import Places
from .expectation import Expectation
from .own_cases import OwnCase

Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Target:
    """A component at a layer, with one task per draw; one row of the verdict table."""

    name: str
    layer: int
    tasks: tuple[Task, ...]

    def by_dtype(self, job: Job) -> tuple[Target, ...]:
        """A target for each dtype of the job's, so that a failure in one dtype leaves the verdicts of others."""
        drawn = {dtype: [task for task in self.tasks if dtype in job.dtypes_of(task)] for dtype in job.dtypes}
        return tuple(
            replace(self, tasks=tuple(replace(task, dtype=dtype) for task in tasks))
            for dtype, tasks in drawn.items()
            if tasks
        )


@dataclass(frozen=True, kw_only=True)
class Material:
    """The weights of each draw, the expectation of each task, and the folder that ranks read and write."""

    options: Resolved
    subject: Subject
    targets: tuple[Target, ...]
    checkpoints: tuple[Checkpoint, ...]
    expectations: Mapping[Task, Expectation]
    folder: Path
    own: OwnCase | None = None
    places: Places = field(default_factory=Places)
    tied: Mapping[str, str] = field(default_factory=dict)  # of a parameter's name, that of the one it is tied to
    notes: tuple[str, ...] = ()  # on weights and inputs, for the reader of the verdicts

    def notes_in(self, count: int) -> tuple[str, ...]:
        """The notes as a run of `count` materials prints them: with several, each begins with its Case's name."""
        name = f"{self.own.label}: " if self.own and count > 1 else ""
        return tuple(name + note for note in self.notes)

    def job(self, tp: int, targets: tuple[Target, ...]) -> Job:
        """The job of the `tp` ranks of one degree: every task of the targets."""
        return Job(
            tp=tp,
            subject=self.subject,
            tasks=tuple(task for target in targets for task in target.tasks),
            dtypes=self.options.dtypes,
            weights=tuple(tuple(str(path) for path in c.paths) for c in self.checkpoints),
            folder=str(self.folder),
            kernels=self.options.kernels,
            repeats=self.options.repeats,
            unlocked=tp == min(self.options.degrees, key=_after_one),
            tied=dict(self.tied),
        )

    def expectation(self, task: Task) -> Expectation:
        """The expectation of a task, on the tokens that it is run on."""
        whole = self.expectations[task.clean]
        return whole.first(task.tokens, self.options.batch) if task.tokens else whole

    def blank(self, task: Task, tp: int, dtype: str, *, backend: str, log_dir: Path | str = "") -> Result:
        """The result of a task on `tp` ranks before it is judged: SKIPPED, "not judged"."""
        component, layer = (self.own.label, self.own.layer) if self.own else (task.component, task.layer)
        return Result(
            component=component,
            extent=self.subject.extent(task.component),
            tp=tp,
            backend=backend,
            dtype=dtype,
            layer=layer,
            draws=draws_in(dtype, self.options.dtypes, self.options.draws),
            seed=self.options.seed + task.draw,
            status=Status.SKIPPED,
            reason="not judged",
            fault=task.fault,
            log_dir=str(log_dir),
            mesh=self.subject.case(task, dtype=dtype, tp=tp).declared_axes(tp),
        )

    def tapped_job(self, tp: int, tasks: tuple[Task, ...]) -> Job:
        """The job that runs tasks again on `tp` ranks, and writes down the intermediate tensors."""
        return replace(self.job(tp, ()), tasks=tasks, unlocked=False, taps=True, repeats=0)


def _after_one(tp: int) -> tuple[bool, int]:
    """The sort key by which the unlocked run, which is reported and not judged, gets the least degree above 1."""
    return tp == 1, tp
