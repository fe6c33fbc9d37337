"""The flow of `verify`: material, then degree by degree ranks, gather, judge, record."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path

import torch

from ..backends import POLL_SECONDS, Backend, RunningJob, Session, run_to_end
from ..config.dtypes import EXACT
from ..config.options import OWN, Resolved
from ..diagnosis.explain import explain
from ..errors import blame, described, is_theirs
from ..faults.choice import with_fault_s_target
from ..judge.draws import by_dtype, worst_draw
from ..judge.evidence import Evidence
from ..judge.gather import Awaited, read_outputs, remove_outputs
from ..judge.judge import judge
from ..judge.proofs import without_crash
from ..judge.verdict import reconciled
from ..launch import LaunchOutcome
from ..prepare.material import Material, Progress, Target
from ..prepare.memory_budget import available_memory, lacks_for_taps
from ..prepare.own_cases import log_suffix, named
from ..prepare.prepare import prepare
from ..ranks.job import Job, Task
from ..results.remaining_work import Todo
from ..results.result import Result, Status
from ..results.run_record import RunRecord
from ..system.interrupts import check_interrupt
from .agreement import agreed
from .grafts import Grafting, Left, kept
from .negative_control import ControlRun, failure_status
from .run_notes import run_notes


def verify(options: Resolved, backend: Backend, record: RunRecord, progress: Progress) -> None:
    """Verify every target at every degree; `record` grows by one result at a time. What it holds is not repeated.

    Raises:
        UsageError: a case, plan or checkpoint that cannot be; no rank was started then.
    """
    options = with_fault_s_target(options)
    targets = options.targets if options.case else Todo(options=options, record=record).targets
    if targets:
        _verify(replace(options, targets=targets), backend, record, progress)
    for i, result in enumerate(agreed(record.results)):
        if result != record.results[i]:
            record.replace(i, result)
    record.notes += run_notes(options, backend, record.results)
    record.finished = True
    record.save()


def _verify(options: Resolved, backend: Backend, record: RunRecord, progress: Progress) -> None:
    with backend.open(options.degrees) as session:  # before anything is computed: a fork must not copy running threads
        # Two threads that wait for each other between thousands of small products cost more than they save, many times
        # over where something else wants the cores; and once ranks run, the other cores are theirs. See idle_cores.py.
        torch.set_num_threads(1)
        preparations = prepare(options, copies=backend.weight_copies, process_group=backend.process_group)
        if options.targets == (OWN,):
            record.options |= named(preparation.own for preparation in preparations if preparation.own)
            record.save()
        with ExitStack() as stack:
            folders = [stack.enter_context(preparation.folder()) for preparation in preparations]
            stack.enter_context(session)  # again: ranks must end before their folders are removed
            materials = [
                preparation.material(folder, progress)
                for preparation, folder in zip(preparations, folders, strict=True)
            ]
            notes = [note for material in materials for note in material.notes_in(len(materials))]
            record.notes += [note for note in notes if note not in record.notes]  # a resumed run has them
            for material in materials:
                for tp in options.degrees:
                    DegreeRun(material, session, record, tp, progress).run()


class DegreeRun:
    """All targets of a material at one degree: one start of the ranks, and after a failure another for the rest."""

    def __init__(self, material: Material, session: Session, record: RunRecord, tp: int, progress: Progress) -> None:
        self.material, self.session, self.record, self.tp = material, session, record, tp
        self.progress = progress
        self.options = material.options
        self.own = material.own
        self.todo = Todo(
            options=self.options, record=record, own=(self.own.label, self.own.layer) if self.own else None
        )
        self.control = ControlRun(self.todo, tp, first=not session.starts_anew, places=material.places)
        self.log_dir = Path()
        self.name = f"tp{tp}" + (log_suffix(record.options["case"], self.own.spec) if self.own else "")

    def run(self) -> None:
        """Add one result per target and dtype to the record."""
        pending = tuple(t for t in self.material.targets if self.todo.dtypes((t.name, t.layer), self.tp))
        pending = self.control.of(pending) if pending or self.todo.lacks_control(self.tp) else ()
        while pending:
            self.log_dir = self._new_log_dir()
            job = self.material.job(self.tp, pending)
            for task in job.tasks:  # a rank may have been ahead of the one that failed
                remove_outputs(job, task)
            running = self.session.start(job.write(), tp=self.tp, log_dir=self.log_dir, timeout=self.options.timeout)
            try:
                self._compute_baselines(pending)
                done, outcome = self._follow(job, pending, running)
            finally:
                running.stop()
            if outcome.start_retries:
                self.record.notes.append(f"tp {self.tp}: the ranks had to be started a second time")
            # The first that is not complete is the one that failed; ranks that cannot start fail for all.
            failed = len(pending) if outcome.kind == "start" else done + 1
            again: tuple[Target, ...] = ()
            for target in pending[done:failed]:
                if target is self.control.target:
                    self.control.fail(outcome)
                elif self._is_to_part(target, job, outcome):
                    again += target.by_dtype(job)
                else:
                    dtypes = job.dtypes_of(target.tasks[0])
                    self._add_all(self._failure(target, dtype, outcome) for dtype in dtypes)
                    if len(dtypes) == 1:
                        self.control.leave(dtypes[0])
            pending = self.control.of((*again, *pending[failed:]))
        self._reconcile()
        self.control.conclude()
        self._explain()

    def _is_to_part(self, target: Target, job: Job, outcome: LaunchOutcome) -> bool:
        """Whether a user's module crashed in one of several dtypes, and ranks can be started for each by itself."""
        several = len(job.dtypes_of(target.tasks[0])) > 1
        crashed = failure_status(outcome) is Status.CRASH and outcome.kind != "start"
        return several and crashed and bool(self.options.case) and self.session.starts_anew

    def _reconcile(self) -> None:
        """Say what 16-bit results and exact arithmetic cannot decide, now that other dtypes have a verdict too."""
        for i, result in self._held():
            beside = [other for _, other in self._held() if self.todo.target_of(other) == self.todo.target_of(result)]
            ran = any(not other.status.is_incomplete for other in beside)
            if self.options.case and result.dtype == EXACT and ran:
                self.record.replace(i, without_crash(result))
            single = next((other for other in beside if other.dtype == "float32"), None)
            if single:
                planned = self.material.subject.case(self._task(result), dtype=result.dtype, tp=self.tp).collectives
                self.record.replace(i, reconciled(self.record.results[i], single, planned=planned is not None))

    def _held(self) -> list[tuple[int, Result]]:
        """This degree's results, and where they are in the record."""
        return [(i, r) for i, r in enumerate(self.record.results) if r.tp == self.tp and self.todo.holds(r)]

    def _new_log_dir(self) -> Path:
        """tp8, or tp8-NAME of several Cases, and for further starts tp8-start1 and so on; never one that holds logs."""
        names = (self.name + (f"-start{start}" if start else "") for start in count())
        return next(p for p in (self.record.folder / "logs" / name for name in names) if not p.exists())

    def _compute_baselines(self, pending: tuple[Target, ...]) -> None:
        """Compute what is still missing of the single-core runs, while the ranks run."""
        for target in pending:
            self.progress(f"tp {self.tp}: single-core runs of {self.material.subject.called(target.tasks[0])}")
            for task in target.tasks:
                _ = self.material.expectations[task.clean].baselines

    def _follow(self, job: Job, pending: tuple[Target, ...], running: RunningJob) -> tuple[int, LaunchOutcome]:
        """Judge targets as the ranks complete them; returns how many were complete, and how the ranks ended.

        The last one counts as complete when the ranks have also ended well: there is no other for them to fail.
        """
        outcome = None
        for done, target in enumerate(pending):
            check_interrupt()
            self.progress(f"tp {self.tp}: {self.material.subject.called(target.tasks[0])}")
            is_last, awaited = target is pending[-1], Awaited(job, target.tasks)
            while not awaited.all_there() or (is_last and outcome is None):
                if outcome is not None:
                    return done, outcome
                outcome = running.poll()
                check_interrupt()
                time.sleep(POLL_SECONDS)
            if is_last and outcome is not None and not outcome.ok:
                return done, outcome
            drawn = [self._judge(job, task) for task in target.tasks]
            if target is self.control.target:
                self.control.settle([results[0] for results in drawn])
            else:
                self._add_all(map(worst_draw, by_dtype(drawn)))
        assert outcome is not None  # the last target waited for it
        return len(pending), outcome

    def _judge(self, job: Job, task: Task) -> list[Result]:
        """One result per dtype."""
        ranks = read_outputs(job, task)
        self.control.see(task, ranks)
        evidence = (Evidence.of(self.material, task, self.tp, dtype, ranks) for dtype in job.dtypes_of(task))
        results = [judge(of_dtype, self._blank(task, of_dtype.dtype)) for of_dtype in evidence]
        remove_outputs(job, task)
        return results

    def _explain(self) -> None:
        """Run what differed once more, with every tap recorded, and say of each result where it went wrong first."""
        failed = {i: r for i, r in self._held() if self.todo.unexplained(r)}
        failed = {i: result for i, result in failed.items() if self._taps_fit(result)}
        tasks = {i: self._task_beside_crashes(result) for i, result in failed.items()}
        if not failed:
            return
        with ExitStack() as stack:  # what the ranks record is removed at the end
            run = partial(self._run_tapped, stack)
            left = run(tuple(dict.fromkeys(tasks.values())), "taps", "looking for what went wrong first")
            grafting = Grafting(self.material, self.tp, partial(run, what="looking for further mistakes"))
            if left is None:
                return
            for i, result in failed.items():
                self.progress(f"tp {self.tp}: what went wrong first in {result.title}")
                with self._spared(f"{result.title}: what went wrong first was"):
                    evidence = kept(Evidence.of(self.material, tasks[i], self.tp, result.dtype, left(tasks[i])))
                    self.record.replace(i, explain(evidence, result))
                    self.record.replace(i, grafting.add(i, self.record.results[i], tasks[i], evidence))
            with self._spared(f"tp {self.tp}: further mistakes were"):
                for i, result in grafting.results():
                    self.record.replace(i, result)

    def _run_tapped(self, stack: ExitStack, tasks: tuple[Task, ...], word: str, what: str) -> Left | None:
        """Run tasks with all taps recorded; gives what reads their files. Where the ranks fail, a note and None."""
        job = self.material.tapped_job(self.tp, tasks)
        for task in tasks:
            stack.callback(remove_outputs, job, task)
        log_dir = self.record.folder / "logs" / f"{self.name}-{word}"
        outcome = run_to_end(self.session, job, log_dir=log_dir, timeout=self.options.timeout)
        if outcome.ok:
            return partial(read_outputs, job)
        self.record.notes.append(f"tp {self.tp}: {what} failed: {outcome.message}")
        return None

    @contextmanager
    def _spared(self, what: str) -> Iterator[None]:
        """Turn any error into a note: the verdict stands, whatever becomes of its explanation."""
        try:
            yield
        except Exception as error:
            log = self.record.folder / "logs" / f"{self.name}-taps" / "explanation.log"
            log.write_text(traceback.format_exc())
            whose = blame(error) if is_theirs(error) else f"which is a bug in tp-harness: {described(error)}"
            self.record.notes.append(f"{what} not found out, {whose} ({log})")

    def _taps_fit(self, result: Result) -> bool:
        """Whether there is memory for all tensors of what a result is of; a note says so if not."""
        lacking = lacks_for_taps(self.options, result.component, self.tp, available_memory())
        if lacking:
            self.record.notes.append(f"what went wrong first in {result.title} was not looked for: {lacking}")
        return not lacking

    def _task(self, result: Result) -> Task:
        """The draw that a result stands for."""
        name, layer = self.todo.target_of(result)
        return Task(component=name, layer=layer, draw=result.seed - self.options.seed, fault=result.fault)

    def _task_beside_crashes(self, result: Result) -> Task:
        """The same, in the result's dtype alone where the ranks crash in another one."""
        of_target = (r for _, r in self._held() if self.todo.target_of(r) == self.todo.target_of(result))
        crashed = any(r.error for r in of_target)
        return replace(self._task(result), dtype=result.dtype if crashed else "")

    def _failure(self, target: Target, dtype: str, outcome: LaunchOutcome) -> Result:
        """The result of a target whose ranks crashed, hung, or left without their outputs."""
        return replace(
            self._blank(target.tasks[0], dtype),
            status=failure_status(outcome),
            reason="the ranks ended without leaving their outputs" if outcome.ok else outcome.message,
            error=outcome.error or "",
            traceback=outcome.traceback or "",
        )

    def _blank(self, task: Task, dtype: str) -> Result:
        return self.material.blank(task, self.tp, dtype, backend=self.record.backend, log_dir=self.log_dir)

    def _add_all(self, results: Iterator[Result]) -> None:
        for result in results:
            if result.dtype in self.todo.dtypes(self.todo.target_of(result), self.tp):
                self.record.add(result)
