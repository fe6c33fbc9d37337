"""The control of a degree: a fault is put in beside the run's own targets, and must be rejected.

A verdict that accepts what is wrong proves nothing, so if the fault passes, nothing else passes at that degree. The
fault is drawn at random (by the run's seed) from those that are active there. One that turns out to change no bit of
this run, as a bias does that is zero in a user's checkpoint, is no control; another is drawn then.

Faults among experts are put in on the first tokens of each row alone: experts treat every token by itself. If one is
not rejected, the same tokens are run without it as well, to see whether it changed anything.

Not covered: with `--kernels nki` only faults in what ranks load or are given, because kernels do not run
what the others change.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from ..config.options import Resolved
from ..faults import FAULTS, GENERIC, SERVED, Fault
from ..faults.choice import config_at
from ..judge.gather import RankOutput
from ..launch import LaunchOutcome
from ..prepare.control_places import Places
from ..prepare.material import Target
from ..ranks.job import Task
from ..results.remaining_work import Todo
from ..results.result import Control, Result, Status
from .run_outputs import Left

TOKENS = {"mlp": 4}  # of each row, by component, where a fault needs no more of them
DRAWN = 3  # faults at most, until one ends with a verdict
BATCHES = (1, 8, 24)  # of a user's case: how many are tried in one start of the ranks, and if none shows, in the next
# A relative change of an output that no rounding gives, by dtype: it must be rejected.
PLAIN = {"exact": 1e-9, "float64": 1e-9, "float32": 1e-3, "bfloat16": 0.3, "float16": 0.03}
SHOWN = 6
DRAW = "draw inputs of random numbers of order one that reach every parameter"


def candidates(options: Resolved, tp: int) -> list[Fault]:
    """Faults that may serve as control at a degree of a run, in the order in which they are tried."""
    if not options.fault_control or options.fault:
        return []
    config, dtype = config_at(options, tp), control_dtype(options)
    pool = GENERIC if options.case else (*FAULTS, *SERVED)
    fit = [
        fault
        for fault in pool
        if (fault.component, fault.layer) in options.targets
        and dtype in fault.visible_in
        and not (fault.heavy or fault.faint)
        and (fault.loads or fault.spoil or options.kernels == "torch")
        and fault.active(config, tp)
    ]
    return Random(f"{options.seed} {tp}").sample(fit, len(fit))


def failure_status(outcome: LaunchOutcome) -> Status:
    """The status of what ranks did not complete, by how they ended."""
    return {"timeout": Status.TIMEOUT, "ok": Status.MISSING}.get(outcome.kind, Status.CRASH)


def control_dtype(options: Resolved) -> str:
    """float32 where the run has it: more faults are visible there."""
    return "float32" if "float32" in options.dtypes else options.dtypes[0]


@dataclass(frozen=True, kw_only=True)
class Draws:
    """The state of the search for a control: the faults of `target` are tried now, those `left` after them."""

    dtype: str  # in which they are put in
    left: tuple[Task, ...]
    sizes: tuple[int, ...]  # how many are tried in each further start of the ranks
    tried: tuple[Task, ...] = ()  # those of all targets
    target: Target | None = None  # None when nothing is tried any more
    crashed: frozenset[str] = frozenset()  # dtypes in which the module itself crashes
    cause: LaunchOutcome | None = None  # how the ranks ended that the first such fault ended
    failed: bool = False  # no fault could be tried, for that cause

    def next(self) -> Draws:
        """The next target: as many of the faults that are left as are tried in one start of the ranks."""
        if not (self.left and self.sizes):
            return replace(self, target=None)
        tasks, left = self.left[: self.sizes[0]], self.left[self.sizes[0] :]
        target = Target(name=tasks[0].component, layer=tasks[0].layer, tasks=tasks)
        return replace(self, left=left, sizes=self.sizes[1:], tried=(*self.tried, *tasks), target=target)

    def without(self, dtype: str, dtypes: tuple[str, ...]) -> Draws:
        """The draws without this dtype, in which the module itself crashes: faults go into another of `dtypes`."""
        crashed = self.crashed | {dtype}
        others = [other for other in dtypes if other not in crashed]
        if dtype != self.dtype or not others or self.target is None:
            return replace(self, crashed=crashed)
        tasks, left = (tuple(replace(t, dtype=others[0]) for t in some) for some in (self.target.tasks, self.left))
        target = replace(self.target, tasks=tasks)
        return replace(self, dtype=others[0], left=left, target=target, crashed=crashed)

    def after_end(self, outcome: LaunchOutcome, passed: Collection[tuple[str, int]]) -> Draws:
        """The draws after a fault that ended the ranks: the next fault, alone, is of a target that passed."""
        left = tuple(task for task in self.left if (task.component, task.layer) in passed)
        sizes = (1,) * len(self.sizes)  # one that ends its ranks takes the others along
        following = replace(self, left=left, sizes=sizes).next()
        # the first cause: where no rank is started anew, others only say so
        return replace(following, cause=self.cause or outcome, failed=following.target is None)

    def beside_clean(self, task: Task) -> Draws:
        """The same target with a run without the fault before it."""
        assert self.target is not None
        clean = replace(task, fault="", place="", rank=-1)
        return replace(self, target=replace(self.target, tasks=(clean, *self.target.tasks)))


class ControlRun:
    """The control of one degree, from the choice of its fault to what it says about the degree's results.

    It is run last, so that a fault that ends its ranks costs nothing. With `first` it follows its own target and is run
    before the others, as the ranks could not be started again: what passed before a rank is lost keeps its verdict.
    """

    def __init__(self, todo: Todo, tp: int, *, first: bool = False, places: Places | None = None) -> None:
        options = todo.options
        self.todo, self.options, self.record, self.tp, self._first = todo, options, todo.record, tp, first
        self.places = places or Places()
        faults = candidates(options, tp)
        tasks = self._own(faults) if options.case else tuple(_task(options, fault) for fault in faults)
        self._wanted = bool(tasks) or (options.fault_control and not options.fault)
        sizes = BATCHES if options.case else (1,) * DRAWN
        self._seen: dict[Task, Left] = {}  # of faults, and of what `_twin` says is without them
        self.draws = Draws(dtype=control_dtype(options), left=tasks, sizes=sizes).next()

    @property
    def target(self) -> Target | None:
        """What is tried now."""
        return self.draws.target

    def of(self, targets: tuple[Target, ...]) -> tuple[Target, ...]:
        """The targets of the next start, with the control unless nothing passed for which it would count."""
        own = tuple(target for target in targets if self.options.fault or not any(t.fault for t in target.tasks))
        speaks = own or bool(self._passed())
        if not self.target or not speaks:
            return own
        name = self.target.name, self.target.layer
        beside = own if not self._first else tuple(t for t in own if (t.name, t.layer) == name)
        return (*beside, self.target, *(target for target in own if target not in beside))

    def see(self, task: Task, ranks: Mapping[int, RankOutput]) -> None:
        """Remember what ranks left with the fault and without it, to tell whether it changed anything."""
        dtype = self.draws.dtype
        if task.fault:
            self._seen[task] = Left.of(ranks, dtype, outputs=bool(task.place))
        elif self.target and _twin(task) == _twin(self.target.tasks[-1]) and task.dtype in ("", dtype):
            self._seen[_twin(task)] = Left.of(ranks, dtype, outputs=bool(self.options.case))

    def leave(self, dtype: str) -> None:
        """Put faults into another dtype, because the module itself crashes in this one."""
        self.draws = self.draws.without(dtype, self.options.dtypes)

    def settle(self, results: Sequence[Result]) -> None:
        """The verdict on each task of the target: the first fault that changes this run is its control."""
        assert self.target is not None
        tasks, clean = self.target.tasks, self._seen.get(_twin(self.target.tasks[-1]))
        for task, result in zip(tasks, results, strict=True):
            # a wrong shard is seen by looking at what ranks hold; the numbers must show it too
            rejected = bool(set(result.rejections) - {"reassembly"})
            if not task.fault or (clean is not None and self._seen[task].is_as(clean)):
                continue
            if clean is None and not rejected:
                self.draws = self.draws.beside_clean(task)
                return
            if rejected or clean is None or not task.place or self._seen[task].off(clean) > PLAIN[self.draws.dtype]:
                self._record(task, result.seed, rejected, result.reason)
                return
        self.draws = self.draws.next()

    def fail(self, outcome: LaunchOutcome) -> None:
        """Draw another fault, for a case whose ranks ended well: the ranks ended before they left this fault's outputs.

        If no case's ranks ended well, the degree has no verdict: its ranks crash, hang or go missing.
        """
        assert self.target is not None
        task = self.target.tasks[-1]
        self.draws = self.draws.after_end(outcome, {self.todo.target_of(r) for _, r in self._passed()})
        if self.draws.failed and self.draws.cause:
            self._record(task, self.options.seed, False, f"its ranks ended: {self.draws.cause.message}")

    def conclude(self) -> None:
        """Take back what passed at this degree if no control was rejected, or none could be; note if no fault fits."""
        controls = [control for control in self.record.controls if control.tp == self.tp and self.todo.holds(control)]
        if self._wanted and not controls and not self.draws.tried:
            if self._passed():
                of = f" {self.todo.own[0]}" if self.todo.own else ""
                self.record.notes.append(
                    f"tp {self.tp}{of}: no fault that could be put in as a control changes this run"
                )
        elif self._wanted and not controls:
            self._take_back(Status.VOID, self._unchanged())
        cause = self.draws.cause
        for control in controls:
            if not control.rejected:
                status = failure_status(cause) if self.draws.failed and cause else Status.VOID
                self._take_back(status, self._verdict(control))
        if self._wanted and self.places.blind:
            self._take_back(
                Status.VOID,
                f"{' and '.join(self.places.flat)}, which hides every exchange of tokens or features: {DRAW}",
            )

    def _take_back(self, status: Status, reason: str) -> None:
        for i, result in self._passed():
            self.record.replace(i, replace(result, status=status, reason=reason, worst=None))

    def _unchanged(self) -> str:
        """Why no fault that was put in could be seen, and what to do."""
        tried = " and ".join(dict.fromkeys(task.fault for task in self.draws.tried))
        places = list(dict.fromkeys(task.place for task in self.draws.tried if task.place))
        tried += f" in {', '.join(places[:SHOWN])}{', ...' if len(places) > SHOWN else ''}" if places else ""
        why = "; ".join((tried, *self.places.flat))
        advice = DRAW if self.options.case else "choose other weights or a larger input"
        return f"no fault put in as a control changes this run ({why}), so that no mistake would show: {advice}"

    def _verdict(self, control: Control) -> str:
        """What a control that was not rejected says about a result that passed."""
        where = f"{control.place} of " if control.place else ""
        fault = f"fault {control.fault}, put into {where}{control.component} layer {control.layer} in {control.dtype}"
        fault += f" on the first {control.tokens} tokens of each row" if control.tokens else ""
        if self.draws.failed:  # the ranks' status, and not VOID: nothing that is wrong was accepted
            return f"passed, but no control could run, so it proves nothing: {fault}: {control.reason}"
        return f"the control passed: {fault}, was not rejected: {control.reason}"

    def _passed(self) -> list[tuple[int, Result]]:
        results = enumerate(self.record.results)
        return [(i, r) for i, r in results if r.tp == self.tp and r.status.passed and self.todo.holds(r)]

    def _own(self, faults: Sequence[Fault]) -> tuple[Task, ...]:
        """Each fault at each place, as many as will ever be tried."""
        places = self.places.drawn(self.tp, Random(f"{self.options.seed} {self.tp} places"))
        pairs = [
            (faults[(i + turn) % len(faults)], place) for turn in range(len(faults)) for i, place in enumerate(places)
        ]
        return tuple(
            _task(self.options, fault, place=place, rank=rank, number=number)
            for number, (fault, (place, rank)) in enumerate(pairs[: sum(BATCHES)], 1)
        )

    def _record(self, task: Task, seed: int, rejected: bool, reason: str) -> None:
        component, layer = self.todo.own or (task.component, task.layer)
        self.record.controls.append(
            Control(
                tp=self.tp,
                fault=task.fault,
                component=component,
                layer=layer,
                dtype=self.draws.dtype,
                tokens=task.tokens,
                place=_whose(task),
                seed=seed,
                rejected=rejected,
                reason=reason,
            )
        )
        self.record.save()
        self.draws = replace(self.draws, target=None, left=())


def _task(options: Resolved, fault: Fault, **fields: Any) -> Task:
    tokens = TOKENS.get(fault.component, 0)
    tokens = tokens if tokens < options.seq else 0
    dtype = control_dtype(options)
    task = Task(component=fault.component, layer=fault.layer, draw=0, fault=fault.name, dtype=dtype, tokens=tokens)
    return replace(task, **fields)


def _twin(task: Task) -> Task:
    """The task without its fault and dtype: equal for two tasks that differ in these alone."""
    return replace(task, fault="", dtype="", place="", rank=-1, number=0)


def _whose(task: Task) -> str:
    """Where a task's fault is put in, "" for one that has its own place."""
    return f"{task.place} of {'every rank' if task.rank < 0 else f'rank {task.rank}'}" if task.place else ""
