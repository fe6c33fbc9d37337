"""The inputs and expected outputs of a task: the oracle's run at once, other reference runs when they are needed."""

from __future__ import annotations

import dataclasses
import pickle
import random
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..arithmetic.casts import COMPUTED_IN
from ..arithmetic.exact import Exact
from ..arithmetic.floats import Floats, nominal
from ..arithmetic.residues.field import Field
from ..case.calls import Calls
from ..case.case import Case
from ..case.routing import Lock
from ..case.seeds import generator, seed_of
from ..case.state_dict import load_weights, weights_of
from ..checkpoint.checkpoint import Checkpoint
from ..config.dtypes import EXACT
from ..errors import UsageError, told
from ..parallel.placements import same_bits
from ..ranks.job import Job, Task
from ..ranks.rank_inputs import RankInputs
from ..results.tensor_names import said
from ..system.idle_cores import idle_cores
from .oracle import ReferenceRun, Tapped, locks_of, make_reference, run_reference
from .unreached_parameters import differ, idle

FLOAT64 = Floats(torch.float64)
NEARBY = 8  # nearby inputs at which a single-core error that scatters is measured again

Pairs = tuple[tuple[ReferenceRun, ReferenceRun], ...]  # oracle and baseline


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """The reference runs of a task; all but the oracle's, whose routing ranks need, are computed at first use."""

    cases: Mapping[str, Case]  # by dtype
    reference: nn.Module  # holds the weights
    calls: Calls  # with full tensors, any shape; floating-point ones float32, rounded to bfloat16
    oracle: ReferenceRun
    seed: int
    key: str  # the task's key
    field: Path  # the file of primes and tables that exact arithmetic uses for this task
    tied: Mapping[str, str]  # of a parameter's name, that of the one it is tied to
    random: bool = False  # the reference draws random numbers, and gives other outputs when it is run again
    kept: dict[str, Tapped] | None = None  # by dtype, the runs with taps, which are large; None keeps none
    first_of: tuple[Expectation, int, int] | None = None  # the Expectation, tokens and rows that `first` made this of
    _nearby: dict[str, Pairs] = dataclasses.field(default_factory=dict, init=False)

    @property
    def case(self) -> Case:
        """The case in the first dtype of the run."""
        return next(iter(self.cases.values()))

    @property
    def locks(self) -> dict[str, Lock]:
        """What every router shall choose, by tap name; see `locks_of`."""
        return locks_of(self.case, self.oracle)

    @cached_property
    def baselines(self) -> Mapping[str, ReferenceRun]:
        """By dtype, the single-core reference's run in it with the oracle's routing."""
        if self.first_of:
            whole, tokens, batch = self.first_of
            return {dtype: run.first(tokens, batch) for dtype, run in whole.baselines.items()}
        return {dtype: self._run(dtype) for dtype in self.cases}

    def exact(self) -> Exact:
        """A new run in exact arithmetic, in the field of the task."""
        return Exact(Field.read(self.field))

    @cached_property
    def primes(self) -> tuple[int, ...]:
        """The primes modulo which exact arithmetic computes."""
        return self.exact().field.primes

    @property
    def inputs(self) -> Mapping[str, torch.Tensor]:
        """The full inputs by name, of any shape and dtype."""
        return self.calls.tensors

    def oracle_of(self, dtype: str, output: str) -> torch.Tensor:
        """What an output, by its name, of a run in a dtype is compared with: full, float64 (any shape)."""
        return (self.baselines[dtype] if dtype == EXACT else self.oracle).outputs[output]

    def run_tapped(self, dtype: str) -> Tapped:
        """Run oracle (float64) and baseline (`dtype`) with every tap; called after a mismatch only."""
        if self.kept is not None and dtype in self.kept:
            return self.kept[dtype]
        single = self._run(dtype, taps=True)
        if dtype == EXACT:  # the shadows are the oracle
            exact = single
        else:
            exact = run_reference(self.case, self.reference, self.calls, FLOAT64, self.locks, taps=True)
        tapped = Tapped(reference=self.reference, calls=self.calls, oracle=exact, baseline=single)
        if self.kept is not None:
            self.kept[dtype] = tapped
        return tapped

    def keeping(self) -> Expectation:
        """The same expectation and its runs so far, which also keeps its runs with taps for as long as it lives."""
        found = copy(self)
        object.__setattr__(found, "kept", {})
        return found

    def run_nearby(self, dtype: str) -> Pairs:
        """Run oracle (float64) and baseline (`dtype`) at NEARBY inputs near the task's; () for a control's `first`."""
        if self.first_of:
            return ()
        if dtype not in self._nearby:
            self._nearby[dtype] = tuple(self._run_near(dtype, number) for number in range(NEARBY))
        return self._nearby[dtype]

    def run_idle(self) -> Mapping[str, torch.Tensor]:
        """By parameter, the places that change no output: bool, of shape (places,); see `unreached_parameters.idle`."""
        return idle(self.case, self.reference, self.calls)

    def first(self, tokens: int, batch: int) -> Expectation:
        """The expectation of the first `tokens` of each of `batch` rows, for a control.

        It has no runs at nearby inputs: they widen limits, and a control's fault has to exceed the narrow ones.
        """
        return replace(self, oracle=self.oracle.first(tokens, batch), first_of=(self, tokens, batch))

    def _run(self, dtype: str, *, taps: bool = False) -> ReferenceRun:
        if dtype != EXACT:
            return self._run_in(dtype, Floats(nominal(dtype)), self.locks, taps=taps)
        arithmetic = self.exact()
        try:
            return self._run_in(dtype, arithmetic, {}, taps=taps)  # shadows choose as the oracle does
        except UsageError:
            raise
        except Exception as error:  # the float64 run, which was the first, raised none
            arithmetic.seen.escape(f"an error is raised in exact arithmetic alone: {told(error)}")
            plain = self._run_in(dtype, FLOAT64, self.locks, taps=taps)
            return plain.unproved(len(arithmetic.field.primes), arithmetic.seen)

    def _run_in(self, dtype: str, arithmetic: Floats | Exact, locks: Mapping[str, Lock], *, taps: bool) -> ReferenceRun:
        return run_reference(
            self.cases[dtype], self.reference, self.calls, arithmetic, locks, tied=self.tied, taps=taps
        )

    def _run_near(self, dtype: str, number: int) -> tuple[ReferenceRun, ReferenceRun]:
        moved = _moved(self.case, self.calls, generator(self.seed, f"{self.key}.nearby{number}"))
        exact = run_reference(self.case, self.reference, moved, FLOAT64, locks=None)
        return exact, replace(self, calls=moved, oracle=exact)._run(dtype)


def expect(job: Job, task: Task, checkpoint: Checkpoint, seed: int) -> Expectation:
    """Compute the oracle of a task, and write the inputs file that its ranks read.

    Floating-point inputs are rounded to bfloat16 and stored as float32, so that all dtypes get the same numbers.

    Raises:
        UsageError: `inputs` of the case returns no tensors, or nan, or other numbers for the same generator; or the
            reference is no module.
    """
    # nothing here depends on the degree
    cases = {dtype: job.subject.case(task, dtype=dtype, tp=1) for dtype in job.dtypes_of(task)}
    case = next(iter(cases.values()))
    source = (seed, f"{task.key}.inputs")
    calls, again = (_drawn(case, generator(*source)) for _ in range(2))
    if again.tensors.keys() != calls.tensors.keys() or not all(
        same_bits(x, again.tensors[name]) for name, x in calls.tensors.items()
    ):
        raise UsageError(
            f"inputs of {case.name} gives other numbers for the same generator, so that no run could be repeated: draw "
            "all of them from the generator that it is given."
        )
    calls = replace(calls.changed(_round), seed=seed_of(*source))
    reference = _load(case, checkpoint)
    with idle_cores(sum(x.nbytes for x in weights_of(reference, "the reference").values())):
        oracle, by_chance = _oracle(case, reference, calls)
    calls = replace(calls, dropped=oracle.dropped)
    expectation = Expectation(
        cases=cases,
        reference=reference,
        calls=calls,
        oracle=oracle,
        seed=seed,
        key=task.key,
        field=job.field_path(task),
        tied=job.tied,
        random=by_chance,
    )
    stateful = bool(job.repeats) and case.may_keep_state and _changes_itself(case, reference, calls)
    RankInputs(
        inputs=calls.tensors,
        locks=expectation.locks,
        source=None if calls.plain else source,
        seed=calls.seed,
        dropped=calls.dropped,
        stateful=stateful,
    ).write(job.inputs_path(task))
    return expectation


def _oracle(case: Case, reference: nn.Module, calls: Calls) -> tuple[ReferenceRun, bool]:
    """The float64 run, and whether the reference draws random numbers, so that another run differs."""
    before = _sources()
    oracle = run_reference(case, reference, calls, FLOAT64, locks=None)
    if before == _sources():
        return oracle, False
    again = run_reference(case, reference, calls, FLOAT64, locks=None)
    return oracle, any(differ(again.outputs[name], x) for name, x in oracle.outputs.items())


def _sources() -> tuple[bytes, ...]:
    """The states of the global random generators of torch, NumPy and Python."""
    of_others = (pickle.dumps(state) for state in (np.random.get_state(), random.getstate()))
    return (torch.get_rng_state().numpy().tobytes(), *of_others)


def _load(case: Case, checkpoint: Checkpoint) -> nn.Module:
    reference, side = make_reference(case), f"the reference of {case.name}"
    state = {name: checkpoint.tensor(case.prefix + name) for name in weights_of(reference, side)}
    load_weights(reference, state, side, assign=case.on_meta)
    return reference.train(case.training)


def _drawn(case: Case, source: torch.Generator) -> Calls:
    """The calls as the case makes them.

    Raises:
        UsageError: there is no tensor, or one holds nan.
    """
    calls = case.given(source)
    if not calls.tensors:
        raise UsageError(f"inputs of {case.name} hold no tensor; a tuple of tensors is needed, for example (x,).")
    for name, x in calls.tensors.items():
        if x.is_floating_point() and x.isnan().any():
            raise UsageError(f"inputs of {case.name} returns nan at {x.isnan().nonzero()[0].tolist()} of {said(name)}.")
    return calls


def _moved(case: Case, calls: Calls, source: torch.Generator) -> Calls:
    """The inputs with every number moved by about 1/64 of itself; where none is a float, other ones of the case."""
    if not any(x.is_floating_point() for x in calls.tensors.values()):
        return _drawn(case, source).changed(_round)

    def move(name: str, x: torch.Tensor) -> torch.Tensor:
        return _round(name, x * (1 + torch.randn(x.shape, generator=source) / 64)) if x.is_floating_point() else x

    return calls.changed(move)


@torch.no_grad()
def _changes_itself(case: Case, reference: nn.Module, calls: Calls) -> bool:
    """Whether a further run of the same module may give other outputs; what keeps a state or has several calls may."""
    if case.state or len(calls.each) > 1:
        return True
    module = case.reference_in(reference, torch.float64)
    runs = (calls.copied(torch.float64).run(module).values() for _ in range(2))  # it names no state
    return not all(same_bits(x, y) for x, y in zip(*runs, strict=True))


def _round(_name: str, x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.bfloat16).to(torch.float32) if x.dtype in COMPUTED_IN else x
