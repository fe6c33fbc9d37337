"""The single-core side: inputs, the float64 oracle, and the same reference in each dtype under test."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial

import numpy as np
import torch
from torch import nn

from ..arithmetic.casts import cast_tensor
from ..case.case import Case, Tensors
from ..case.routing import Lock, check_choices, routing
from ..case.state_dict import load_weights, weights_of
from ..case.taps import tapping
from ..case.top_k import Groups
from ..checkpoint.checkpoint import Checkpoint, TensorSpec
from ..errors import UsageError, doing
from ..parallel.placements import same_bits
from ..ranks.excerpt import of_flat, of_rows
from ..ranks.job import Job, Task
from ..ranks.rank import as_tuple
from ..ranks.rank_inputs import RankInputs
from ..system.idle_cores import idle_cores
from .random_weights import generator
from .unreached_parameters import differ, idle

NEARBY = 8  # inputs at which a single-core error that scatters is measured again


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of a reference: its outputs, and each router's scores, logits and own choice by tap name.

    `rules`: by which scores, as a tap name, and among which groups each router chose; `unlocked` the routers that went
    on with another choice than the one they were locked to.
    """

    outputs: Tensors
    routing: Mapping[str, torch.Tensor]
    taps: Mapping[str, torch.Tensor] = field(default_factory=dict)
    rules: Mapping[str, tuple[str, Groups]] = field(default_factory=dict)
    unlocked: tuple[str, ...] = ()

    def first(self, tokens: int, batch: int) -> Run:
        """What a run on the first tokens of each row gives, where tokens do not see later ones; taps stay behind."""
        return Run(
            outputs=tuple(of_rows(output, tokens) for output in self.outputs),
            routing={name: of_flat(x, tokens, batch) for name, x in self.routing.items()},
            rules=self.rules,
        )


@dataclass(frozen=True, kw_only=True)
class Tapped:
    """The oracle and the single-core reference in one dtype, with every tap; and what they were computed from."""

    reference: nn.Module
    inputs: Tensors
    oracle: Run
    baseline: Run


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """What a task is compared with: the oracle, and per dtype the reference with the oracle's routing."""

    oracle: Run
    run_baselines: Callable[[], Mapping[str, Run]]
    run_tapped: Callable[[str], Tapped]  # by dtype; called after a mismatch only
    run_nearby: Callable[[str], tuple[tuple[Run, Run], ...]]  # by dtype: oracle and baseline at inputs near the task's
    run_idle: Callable[[], Mapping[str, torch.Tensor]]  # see unreached_parameters.py
    random: bool = False  # whether the reference draws numbers that make it give other outputs when it is run again

    @cached_property
    def baselines(self) -> Mapping[str, Run]:
        """By dtype. Computed at the first use: the ranks need the oracle's routing to start, and not these."""
        return self.run_baselines()

    def first(self, tokens: int, batch: int) -> Expectation:
        """Of the first tokens of each row, and of nothing nearby: a control's fault is given no benefit of a doubt."""
        return replace(
            self,
            oracle=self.oracle.first(tokens, batch),
            run_baselines=lambda: {dtype: run.first(tokens, batch) for dtype, run in self.baselines.items()},
            run_nearby=lambda _dtype: (),
        )


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
    locks = locks_of(case, oracle)
    stateful = bool(job.repeats) and not case.lazy and _changes_itself(case, reference, inputs)
    RankInputs(inputs=inputs, locks=locks, stateful=stateful).write(job.inputs_path(task))

    def run_baselines() -> dict[str, Run]:
        return {
            dtype: run_reference(cases[dtype], reference, inputs, getattr(torch, dtype), locks) for dtype in job.dtypes
        }

    def run_tapped(dtype: str) -> Tapped:
        runs = (
            run_reference(case, reference, inputs, torch.float64, locks, taps=True),
            run_reference(cases[dtype], reference, inputs, getattr(torch, dtype), locks, taps=True),
        )
        return Tapped(reference=reference, inputs=inputs, oracle=runs[0], baseline=runs[1])

    def nearby(dtype: str, number: int) -> tuple[Run, Run]:
        moved = _moved(case, inputs, generator(seed, f"{task.key}.nearby{number}"))
        exact = run_reference(case, reference, moved, torch.float64, locks=None)
        return exact, run_reference(cases[dtype], reference, moved, getattr(torch, dtype), locks_of(case, exact))

    @cache
    def run_nearby(dtype: str) -> tuple[tuple[Run, Run], ...]:
        return tuple(nearby(dtype, number) for number in range(NEARBY))

    return Expectation(
        oracle=oracle,
        run_baselines=run_baselines,
        run_tapped=run_tapped,
        run_nearby=run_nearby,
        run_idle=partial(idle, case, reference, inputs),
        random=by_chance,
    )


def _oracle(case: Case, reference: nn.Module, inputs: Tensors) -> tuple[Run, bool]:
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


def run_unlocked(tapped: Tapped, case: Case, dtype: str) -> Run:
    """The single-core reference in a dtype, with its own routing."""
    return run_reference(case, tapped.reference, tapped.inputs, getattr(torch, dtype), locks=None)


def parameter_specs(case: Case) -> tuple[TensorSpec, ...]:
    """Name, full shape and stored dtype of everything the case loads."""
    return specs_of(case, make_reference(case))


def make_reference(case: Case) -> nn.Module:
    """The single-core module, its parameters not loaded."""
    with doing(f"reference of {case.name}, called without arguments,"):
        module = case.make(case.reference)
    if not isinstance(module, nn.Module):
        raise UsageError(f"reference of {case.name} makes a {type(module).__name__}; a torch.nn.Module is needed.")
    return module


def specs_of(case: Case, module: nn.Module) -> tuple[TensorSpec, ...]:
    """`parameter_specs` of a reference that is there."""
    first_names = {parameter: name for name, parameter in module.named_parameters()}
    learned = {
        name: first_names[parameter]
        for name, parameter in module.named_parameters(remove_duplicate=False)
        if parameter.is_floating_point()
    }
    return tuple(
        TensorSpec(
            name=case.prefix + name,
            shape=tuple(tensor.shape),
            dtype=tensor.dtype,
            fixed=None if name in learned else tensor.detach(),
            drawn_as=case.prefix + learned.get(name, name),
        )
        for name, tensor in weights_of(module, f"the reference of {case.name}").items()
    )


def _load(case: Case, checkpoint: Checkpoint) -> nn.Module:
    reference, side = make_reference(case), f"the reference of {case.name}"
    state = {name: checkpoint.tensor(case.prefix + name) for name in weights_of(reference, side)}
    load_weights(reference, state, side, assign=case.lazy)
    return reference.eval()


@torch.no_grad()
def run_reference(
    case: Case,
    reference: nn.Module,
    inputs: Tensors,
    dtype: torch.dtype,
    locks: Mapping[str, Lock] | None,
    *,
    taps: bool = False,
    within: Callable[[nn.Module], AbstractContextManager[object]] = lambda _module: nullcontext(),
) -> Run:
    """One run in a dtype.

    Args:
        case: whose reference it is.
        reference: holds the weights; it is cast as the case says.
        inputs: floating-point ones are cast.
        dtype: of the run.
        locks: what each router shall choose; None leaves it its own choice.
        taps: record the tensors that the case names.
        within: gives what is entered while the cast reference runs.
    """
    called = f"reference of {case.name}, called with its inputs in {str(dtype).removeprefix('torch.')},"
    with doing(called):
        module = case.reference_in(reference, dtype)
    given = tuple(cast_tensor(x, dtype).clone() for x in inputs)  # it may write to them
    with (
        doing(called),
        within(module),
        tapping(module, case.watched if taps else {}) as tapped,
        routing(module, case.routers, locks, watch=not case.lazy) as routed,
    ):
        outputs = as_tuple(module(*given))
    if locks is None and dtype == torch.float64:
        check_choices(case.name, case.routers, routed)
    rules = {router.name: (routed.scores(router), routed.groups_of(router)) for router in case.routers}
    return Run(outputs=outputs, routing=routed.tensors, taps=tapped, rules=rules, unlocked=tuple(routed.unlocked))


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


def locks_of(case: Case, oracle: Run) -> dict[str, Lock]:
    """What every router shall choose."""
    experts = {router.name: oracle.routing[oracle.rules[router.name][0]].shape[-1] for router in case.routers}
    return {router.chosen: Lock(oracle.routing[router.chosen], experts[router.name]) for router in case.routers}


def _round(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.bfloat16).to(torch.float32) if x.is_floating_point() else x
