"""What a task must give, and the inputs it is given: the oracle at once, and what else a verdict may ask for."""

from __future__ import annotations

import pickle
import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import nn

from ..arithmetic.casts import cast_tensor
from ..case.case import Case, Tensors
from ..case.routing import Lock
from ..case.state_dict import load_weights, weights_of
from ..checkpoint.checkpoint import Checkpoint
from ..errors import UsageError, doing
from ..parallel.placements import same_bits
from ..ranks.job import Job, Task
from ..ranks.rank import as_tuple
from ..ranks.rank_inputs import RankInputs
from ..system.idle_cores import idle_cores
from .oracle import ReferenceRun, Tapped, locks_of, make_reference, run_reference
from .random_weights import generator
from .unreached_parameters import differ, idle

NEARBY = 8  # inputs at which a single-core error that scatters is measured again

Pairs = tuple[tuple[ReferenceRun, ReferenceRun], ...]  # oracle and baseline


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """What a task is compared with; all but the oracle, whose routing ranks need, is computed when it is asked for."""

    cases: Mapping[str, Case]  # by dtype
    reference: nn.Module  # holds the weights
    inputs: Tensors  # the full ones, rounded to bfloat16
    oracle: ReferenceRun
    seed: int
    key: str  # the task's
    random: bool = False  # whether the reference draws numbers, and so gives other outputs when it is run again
    kept: dict[str, Tapped] | None = None  # where runs with taps, which are large, are kept by dtype; None keeps none
    first_of: tuple[Expectation, int, int] | None = None  # what it is the first tokens of; see `first`
    _nearby: dict[str, Pairs] = field(default_factory=dict, init=False)

    @property
    def case(self) -> Case:
        """In the first dtype."""
        return next(iter(self.cases.values()))

    @property
    def locks(self) -> dict[str, Lock]:
        """What every router shall choose."""
        return locks_of(self.case, self.oracle)

    @cached_property
    def baselines(self) -> Mapping[str, ReferenceRun]:
        """By dtype the reference with the oracle's routing."""
        if self.first_of:
            whole, tokens, batch = self.first_of
            return {dtype: run.first(tokens, batch) for dtype, run in whole.baselines.items()}
        return {dtype: self._run(dtype) for dtype in self.cases}

    def run_tapped(self, dtype: str) -> Tapped:
        """Oracle and baseline with every tap; called after a mismatch only."""
        if self.kept is not None and dtype in self.kept:
            return self.kept[dtype]
        exact = run_reference(self.case, self.reference, self.inputs, torch.float64, self.locks, taps=True)
        single = self._run(dtype, taps=True)
        tapped = Tapped(reference=self.reference, inputs=self.inputs, oracle=exact, baseline=single)
        if self.kept is not None:
            self.kept[dtype] = tapped
        return tapped

    def run_nearby(self, dtype: str) -> Pairs:
        """Oracle and baseline at inputs near the task's."""
        if self.first_of:
            return ()
        if dtype not in self._nearby:
            self._nearby[dtype] = tuple(self._run_near(dtype, number) for number in range(NEARBY))
        return self._nearby[dtype]

    def run_idle(self) -> Mapping[str, torch.Tensor]:
        """Which parameters the inputs do not reach; see unreached_parameters.py."""
        return idle(self.case, self.reference, self.inputs)

    def first(self, tokens: int, batch: int) -> Expectation:
        """Of the first tokens of each row, and of nothing nearby: a control's fault is given no benefit of a doubt."""
        return replace(self, oracle=self.oracle.first(tokens, batch), first_of=(self, tokens, batch))

    def _run(self, dtype: str, *, taps: bool = False) -> ReferenceRun:
        inputs, locks = self.inputs, self.locks
        return run_reference(self.cases[dtype], self.reference, inputs, getattr(torch, dtype), locks, taps=taps)

    def _run_near(self, dtype: str, number: int) -> tuple[ReferenceRun, ReferenceRun]:
        moved = _moved(self.case, self.inputs, generator(self.seed, f"{self.key}.nearby{number}"))
        exact = run_reference(self.case, self.reference, moved, torch.float64, locks=None)
        return exact, replace(self, inputs=moved, oracle=exact)._run(dtype)


def expect(job: Job, task: Task, checkpoint: Checkpoint, seed: int) -> Expectation:
    """Compute what a task must give, and write the inputs file that its ranks read.

    Every input is rounded to bfloat16 first, so that all dtypes are given the same numbers.
    """
    # nothing here depends on the degree
    cases = {dtype: job.subject.case(task, dtype=dtype, tp=1) for dtype in job.dtypes}
    case = cases[job.dtypes[0]]
    inputs, again = (_drawn(case, generator(seed, f"{task.key}.inputs")) for _ in range(2))
    if not all(same_bits(x, y) for x, y in zip(inputs, again, strict=True)):
        raise UsageError(
            f"inputs of {case.name} gives other numbers for the same generator, so that no run could be repeated: draw "
            "all of them from the generator that it is given."
        )
    inputs = tuple(map(_round, inputs))
    reference = _load(case, checkpoint)
    with idle_cores(sum(x.nbytes for x in weights_of(reference, "the reference").values())):
        oracle, by_chance = _oracle(case, reference, inputs)
    expectation = Expectation(
        cases=cases, reference=reference, inputs=inputs, oracle=oracle, seed=seed, key=task.key, random=by_chance
    )
    stateful = bool(job.repeats) and case.may_keep_state and _changes_itself(case, reference, inputs)
    RankInputs(inputs=inputs, locks=expectation.locks, stateful=stateful).write(job.inputs_path(task))
    return expectation


def _oracle(case: Case, reference: nn.Module, inputs: Tensors) -> tuple[ReferenceRun, bool]:
    """The float64 run, and whether numbers that were drawn in it make another run a different one."""
    before = _sources()
    oracle = run_reference(case, reference, inputs, torch.float64, locks=None)
    if before == _sources():
        return oracle, False
    again = run_reference(case, reference, inputs, torch.float64, locks=None)
    return oracle, any(map(differ, again.outputs, oracle.outputs))


def _sources() -> tuple[bytes, ...]:
    """The states of what numbers are drawn from where nobody says from what: torch's, NumPy's and Python's own."""
    of_others = (pickle.dumps(state) for state in (np.random.get_state(), random.getstate()))
    return (torch.get_rng_state().numpy().tobytes(), *of_others)


def _load(case: Case, checkpoint: Checkpoint) -> nn.Module:
    reference, side = make_reference(case), f"the reference of {case.name}"
    state = {name: checkpoint.tensor(case.prefix + name) for name in weights_of(reference, side)}
    load_weights(reference, state, side, assign=case.on_meta)
    return reference.eval()


def _drawn(case: Case, source: torch.Generator) -> Tensors:
    """The inputs as the case makes them.

    Raises:
        UsageError: they are no tuple of tensors.
    """
    with doing(f"inputs of {case.name}, called with a torch.Generator,"):
        inputs = case.inputs(source)
    given = tuple(inputs) if isinstance(inputs, (tuple, list)) else None
    odd = [inputs] if given is None else [x for x in given if not isinstance(x, torch.Tensor)]
    if given is None or odd:
        what = f"inputs of {case.name} returns a {type(inputs).__name__}" + ("" if given is None else " with a ")
        what += "" if given is None else type(odd[0]).__name__
        raise UsageError(f"{what}; a tuple of tensors is needed, for example (x,).")
    for i, x in enumerate(given):
        if x.is_floating_point() and x.isnan().any():
            raise UsageError(f"inputs of {case.name} returns nan at {x.isnan().nonzero()[0].tolist()} of input {i}.")
    return given


def _moved(case: Case, inputs: Tensors, source: torch.Generator) -> Tensors:
    """The inputs with every number moved by about 1/64 of itself; where none is a float, other ones of the case."""
    if not any(x.is_floating_point() for x in inputs):
        return tuple(_round(x) for x in _drawn(case, source))
    factors = (1 + torch.randn(x.shape, generator=source) / 64 if x.is_floating_point() else 1 for x in inputs)
    return tuple(_round(x * factor) for x, factor in zip(inputs, factors, strict=True))


@torch.no_grad()
def _changes_itself(case: Case, reference: nn.Module, inputs: Tensors) -> bool:
    """Whether a further call of the same module gives other outputs."""
    module = case.reference_in(reference, torch.float64)
    calls = (as_tuple(module(*(cast_tensor(x, torch.float64).clone() for x in inputs))) for _ in range(2))
    return not all(same_bits(x, y) for x, y in zip(*calls, strict=True))


def _round(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.bfloat16).to(torch.float32) if x.is_floating_point() else x
