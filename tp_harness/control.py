"""The control of a degree: a fault is put in beside the run's own targets, and must be rejected.

A verdict that accepts what is wrong proves nothing, so if the fault passes, so does nothing else at that degree. The
fault is drawn at random (by the run's seed) from those that are active there. One that turns out to change no bit of
this run, as a bias does that is zero in a user's checkpoint, is no control; another is drawn then.

Faults among experts are put in on the first tokens of each row alone, which no other token has a part in. If one is not
rejected, the same tokens are run without it as well, to see whether it changed anything.

Not covered: with `--kernels nki` only faults in what ranks load, because kernels pass by what the others change.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from random import Random

from .faults import FAULTS, GENERIC, Fault
from .faults.choice import config_at
from .gather import RankOutput
from .job import Task
from .launch import LaunchOutcome
from .material import Target
from .options import Resolved
from .outputs import digest
from .result import Control, Result, Status
from .todo import Todo
from .trial import rejections

TOKENS = {"mlp": 4}  # of each row, by component, where a fault needs no more of them
DRAWN = 3  # faults at most, until one ends with a verdict


def candidates(options: Resolved, tp: int) -> list[Fault]:
    """Faults that may serve as control at a degree of a run, in the order in which they are tried."""
    if not options.fault_control or options.fault:
        return []
    config, dtype = config_at(options, tp), control_dtype(options)
    pool = GENERIC if options.case else FAULTS
    fit = [
        fault
        for fault in pool
        if (fault.component, fault.layer) in options.targets
        and dtype in fault.visible_in
        and not (fault.heavy or fault.faint)
        and (fault.loads or options.kernels == "torch")
        and fault.active(config, tp)
    ]
    return Random(f"{options.seed} {tp}").sample(fit, len(fit))


def failure_status(outcome: LaunchOutcome) -> Status:
    """The status of what ranks did not complete."""
    return {"timeout": Status.TIMEOUT, "ok": Status.MISSING}.get(outcome.kind, Status.CRASH)


def control_dtype(options: Resolved) -> str:
    """float32 where the run has it: more faults are visible there."""
    return "float32" if "float32" in options.dtypes else options.dtypes[0]


class ControlRun:
    """The control of one degree, from the choice of its fault to what it says about the degree's results.

    It is run last, so that a fault that ends its ranks costs nothing; or, where they could not be started again for a
    control, `first`: then a rank that is lost later on leaves what had passed before it a verdict.
    """

    def __init__(self, todo: Todo, tp: int, *, first: bool = False) -> None:
        options = todo.options
        self.todo, self.options, self.record, self.tp, self._first = todo, options, todo.record, tp, first
        self.dtype = control_dtype(options)
        self._left = candidates(options, tp)
        self._wanted = bool(self._left) or (options.fault_control and not options.fault)
        self._clean: dict[Task, str] = {}
        self._digest = ""
        self._draws = DRAWN
        self._cause: LaunchOutcome | None = None
        self._failure: LaunchOutcome | None = None  # why no fault could be tried
        self.target: Target | None = None
        self._draw()

    def of(self, targets: tuple[Target, ...]) -> tuple[Target, ...]:
        """The targets of the next start: with the control, unless nothing passed that it could speak for."""
        own = tuple(target for target in targets if target is not self.target)
        speaks = own or bool(self._passed())
        if not self.target or not speaks:
            return own
        name = self.target.name, self.target.layer
        beside = own if not self._first else tuple(t for t in own if (t.name, t.layer) == name)
        return (*beside, self.target, *(target for target in own if target not in beside))

    def see(self, task: Task, ranks: Mapping[int, RankOutput]) -> None:
        """Remember what ranks left with the fault and without it, to tell whether it changed anything."""
        if task.fault:
            self._digest = _digest(ranks, self.dtype)
        elif self.target is not None and _twin(task) == _twin(self.target.tasks[-1]):
            self._clean[_twin(task)] = _digest(ranks, self.dtype)

    def settle(self, result: Result) -> None:
        """The verdict on the fault."""
        assert self.target is not None
        task, clean = self.target.tasks[-1], self._clean.get(_twin(self.target.tasks[-1]))
        # a wrong shard is seen by looking at what ranks hold; the numbers must show it too
        rejected = bool(set(rejections(result)) - {"reassembly"})
        if self._digest == clean:
            self._draw()
        elif clean is None and not rejected:
            self.target = replace(self.target, tasks=(replace(task, fault=""), task))
        else:
            self._record(task, result.seed, rejected, result.reason)

    def fail(self, outcome: LaunchOutcome) -> None:
        """The ranks ended before they left the fault's outputs: another is drawn, for a case whose ranks ended well.

        If they do so nowhere, the degree has no verdict: its ranks crash, hang or go missing.
        """
        assert self.target is not None
        task = self.target.tasks[-1]
        passed = {self.todo.target_of(r) for _, r in self._passed()}
        self._left = [fault for fault in self._left if (fault.component, fault.layer) in passed]
        self._draw()
        self._cause = self._cause or outcome  # the first: where no rank is started anew, others only say so
        if self.target is None:
            self._failure = self._cause
            self._record(task, self.options.seed, False, f"its ranks ended: {self._cause.message}")

    def conclude(self) -> None:
        """Take back what passed at this degree if the fault was not rejected; say so if there was none."""
        controls = [control for control in self.record.controls if control.tp == self.tp and self.todo.holds(control)]
        passed = self._passed()
        if self._wanted and passed and not controls:
            of = f" {self.todo.own[0]}" if self.todo.own else ""
            self.record.notes.append(f"tp {self.tp}{of}: no fault that could be put in as a control changes this run")
        for control in controls:
            if not control.rejected:
                status = failure_status(self._failure) if self._failure else Status.VOID
                for i, result in passed:
                    self.record.replace(i, replace(result, status=status, reason=self._verdict(control)))

    def _verdict(self, control: Control) -> str:
        """What a control that was not rejected says about a result that passed."""
        fault = f"fault {control.fault}, put into {control.component} layer {control.layer} in {control.dtype}"
        fault += f" on the first {control.tokens} tokens of each row" if control.tokens else ""
        if self._failure:  # the ranks' status, and not VOID: nothing that is wrong was accepted
            return f"passed, but no control could run, so it proves nothing: {fault}: {control.reason}"
        return f"the control passed: {fault}, was not rejected: {control.reason}"

    def _passed(self) -> list[tuple[int, Result]]:
        results = enumerate(self.record.results)
        return [(i, r) for i, r in results if r.tp == self.tp and r.status is Status.PASS and self.todo.holds(r)]

    def _draw(self) -> None:
        self.target = None
        if self._left and self._draws:
            self._draws -= 1
            fault = self._left.pop(0)
            task = Task(component=fault.component, layer=fault.layer, draw=0)
            tokens = TOKENS.get(fault.component, 0)
            task = replace(task, fault=fault.name, dtype=self.dtype, tokens=tokens if tokens < self.options.seq else 0)
            self.target = Target(name=fault.component, layer=fault.layer, tasks=(task,))

    def _record(self, task: Task, seed: int, rejected: bool, reason: str) -> None:
        component, layer = self.todo.own or (task.component, task.layer)
        self.record.controls.append(
            Control(
                tp=self.tp,
                fault=task.fault,
                component=component,
                layer=layer,
                dtype=self.dtype,
                tokens=task.tokens,
                seed=seed,
                rejected=rejected,
                reason=reason,
            )
        )
        self.record.save()
        self.target, self._left = None, []


def _twin(task: Task) -> Task:
    """What two tasks share that differ in the fault and in the dtypes they are run in."""
    return replace(task, fault="", dtype="")


def _digest(ranks: Mapping[int, RankOutput], dtype: str) -> str:
    """Of every tensor of the run that is judged, and every rank's schedule."""
    total, of_tensor = hashlib.blake2b(digest_size=16), dict[int, str]()
    for rank in sorted(ranks):
        for name, tensor in sorted(ranks[rank].tensors.items()):
            if name.startswith(f"{dtype}.locked."):
                if id(tensor) not in of_tensor:  # ranks that hold the same bits share a large tensor
                    of_tensor[id(tensor)] = digest(tensor)
                total.update(f"{rank} {name} {of_tensor[id(tensor)]}".encode())
        total.update(" ".join(map(str, ranks[rank].collectives(dtype))).encode())
    return total.hexdigest()
