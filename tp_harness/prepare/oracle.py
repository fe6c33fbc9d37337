"""Runs of the single-core reference: in float64, the oracle, and in each dtype under test."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import nn

from ..arithmetic.casts import cast_tensor
from ..case.case import Case, Tensors
from ..case.routing import Lock, check_choices, routing
from ..case.state_dict import weights_of
from ..case.taps import tapping
from ..case.top_k import Groups
from ..checkpoint.checkpoint import TensorSpec
from ..errors import UsageError, doing
from ..ranks.excerpt import of_flat, of_rows
from ..ranks.rank import as_tuple


@dataclass(frozen=True, kw_only=True)
class ReferenceRun:
    """One run of a reference: its outputs, and each router's scores, logits and own choice by tap name.

    `rules`: by which scores, as a tap name, and among which groups each router chose; `unlocked` the routers that went
    on with another choice than the one they were locked to.
    """

    outputs: Tensors
    routing: Mapping[str, torch.Tensor]
    taps: Mapping[str, torch.Tensor] = field(default_factory=dict)
    rules: Mapping[str, tuple[str, Groups]] = field(default_factory=dict)
    unlocked: tuple[str, ...] = ()

    def first(self, tokens: int, batch: int) -> ReferenceRun:
        """What a run on the first tokens of each row gives, where tokens do not see later ones; taps stay behind."""
        return ReferenceRun(
            outputs=tuple(of_rows(output, tokens) for output in self.outputs),
            routing={name: of_flat(x, tokens, batch) for name, x in self.routing.items()},
            rules=self.rules,
        )


@dataclass(frozen=True, kw_only=True)
class Tapped:
    """The oracle and the single-core reference in one dtype, with every tap; and what they were computed from."""

    reference: nn.Module
    inputs: Tensors
    oracle: ReferenceRun
    baseline: ReferenceRun


def run_unlocked(tapped: Tapped, case: Case, dtype: str) -> ReferenceRun:
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
) -> ReferenceRun:
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
        case.computing_in(module, dtype),
        within(module),
        tapping(module, case.watched if taps else {}) as tapped,
        routing(module, case.routers, locks, watch=case.watches_routers) as routed,
    ):
        outputs = as_tuple(module(*given))
    if locks is None and dtype == torch.float64:
        check_choices(case.name, case.routers, routed)
    rules = {router.name: (routed.scores(router), routed.groups_of(router)) for router in case.routers}
    return ReferenceRun(
        outputs=outputs, routing=routed.tensors, taps=tapped, rules=rules, unlocked=tuple(routed.unlocked)
    )


def locks_of(case: Case, oracle: ReferenceRun) -> dict[str, Lock]:
    """What every router shall choose."""
    experts = {router.name: oracle.routing[oracle.rules[router.name][0]].shape[-1] for router in case.routers}
    return {router.chosen: Lock(oracle.routing[router.chosen], experts[router.name]) for router in case.routers}
