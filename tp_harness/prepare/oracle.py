"""Runs of the single-core reference: in float64, the oracle, and in each dtype under test."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from ..arithmetic.casts import COMPUTED_IN
from ..arithmetic.exact import Exact
from ..arithmetic.floats import Floats, nominal
from ..arithmetic.seen import Seen
from ..case.calls import Calls
from ..case.case import Case, Tensors
from ..case.dropout import Shape
from ..case.routing import Lock, check_choices, routing
from ..case.state_dict import weights_of
from ..case.taps import tapping
from ..case.top_k import Groups
from ..checkpoint.checkpoint import TensorSpec
from ..errors import UsageError, doing
from ..ranks.excerpt import of_flat, of_rows
from ..ranks.rank_report import modulo
from ..results.tensor_names import call_of


@dataclass(frozen=True, kw_only=True)
class ReferenceRun:
    """One run of a reference: what its calls returned and left, by name, and each router's scores, logits and choice.

    `outputs` and `taps` have any shape, in the reference's dtypes; in `routing`, scores and logits are (tokens,
    experts) and a choice is (tokens, k), integers. `rules`: the tap name of the scores by which each router chose, and
    its groups; `unlocked`: the routers that continued with another choice than the one they were locked to. In exact
    arithmetic, outputs and taps are the float64 shadows; `residues` has those modulo each prime, int32 of the same
    shape, by the name of a tap or output, and with taps those of exponents, too; `seen` is what the run went through.
    """

    outputs: Mapping[str, torch.Tensor]
    routing: Mapping[str, torch.Tensor]
    taps: Mapping[str, torch.Tensor] = field(default_factory=dict)
    rules: Mapping[str, tuple[str, Groups]] = field(default_factory=dict)
    unlocked: tuple[str, ...] = ()
    residues: Mapping[str, Tensors] = field(default_factory=dict)
    seen: Seen | None = None
    dropped: tuple[Shape, ...] = ()  # in training mode, the shapes of what dropouts were given

    def written(self, *taps: str) -> dict[str, torch.Tensor]:
        """Taps (none: all) as ranks write them: values of any shape by their names, and their residues by those that
        `modulo` gives.
        """
        found: dict[str, torch.Tensor] = {}
        for tap in taps or self.taps:
            residues = {modulo(tap, number): own for number, own in enumerate(self.residues.get(tap, ()))}
            found |= {tap: self.taps[tap]} | residues
        return found

    def unproved(self, primes: int, seen: Seen) -> ReferenceRun:
        """The float64 run in place of an exact one that could not be done: of `primes` residues each, none is known."""
        found = {**self.outputs, **self.taps}
        unknown = {
            name: tuple(torch.full(x.shape, -1, dtype=torch.int32) for _ in range(primes))
            for name, x in found.items()
            if x.is_floating_point()
        }
        return replace(self, residues=unknown, seen=seen)

    def first(self, tokens: int, batch: int) -> ReferenceRun:
        """The run on the first `tokens` of each of `batch` rows, where no token depends on later ones; without taps.

        Outputs become (batch, tokens, ...), router tensors (batch * tokens, ...).
        """
        return ReferenceRun(
            outputs={name: of_rows(output, tokens) for name, output in self.outputs.items()},
            routing={name: of_flat(x, tokens, batch) for name, x in self.routing.items()},
            rules=self.rules,
            residues={name: tuple(of_rows(x, tokens) for x in own) for name, own in self.residues.items()},
            seen=self.seen,
        )


@dataclass(frozen=True, kw_only=True)
class Tapped:
    """The oracle and the single-core run in one dtype, with every tap, and the reference and inputs of both."""

    reference: nn.Module
    calls: Calls
    oracle: ReferenceRun
    baseline: ReferenceRun

    def inputs_of(self, call: str) -> Tensors:
        """The full inputs of a call, in order; any shape and dtype."""
        return tuple(x for name, x in self.calls.tensors.items() if call_of(name) == call)


def run_unlocked(tapped: Tapped, case: Case, dtype: str) -> ReferenceRun:
    """Run the single-core reference in a dtype ("float32") with its own routing, without taps."""
    return run_reference(case, tapped.reference, tapped.calls, Floats(nominal(dtype)), locks=None)


def parameter_specs(case: Case) -> tuple[TensorSpec, ...]:
    """Name, full shape and stored dtype of every tensor that the case loads.

    Raises:
        UsageError: as `make_reference`.
    """
    return specs_of(case, make_reference(case))


def make_reference(case: Case) -> nn.Module:
    """Make the single-core module; its parameters, of full shapes, are not loaded yet.

    Raises:
        UsageError: `reference` of the case makes something else than a module.
    """
    with doing(f"reference of {case.name}, called without arguments,"):
        module = case.make(case.reference)
    if not isinstance(module, nn.Module):
        raise UsageError(f"reference of {case.name} makes a {type(module).__name__}; a torch.nn.Module is needed.")
    return module


def specs_of(case: Case, module: nn.Module) -> tuple[TensorSpec, ...]:
    """Name, full shape and stored dtype of every tensor that the case loads into the reference `module`."""
    first_names = {parameter: name for name, parameter in module.named_parameters()}
    learned = {
        name: first_names[parameter]
        for name, parameter in module.named_parameters(remove_duplicate=False)
        if parameter.dtype in COMPUTED_IN  # float8 ones are how numbers are stored, and belong to their scales
    }
    return tuple(
        TensorSpec(
            name=case.prefix + name,
            shape=tuple(tensor.shape),
            dtype=tensor.dtype,
            fixed=None if name in learned else tensor.detach().resolve_conj(),
            drawn_as=case.prefix + learned.get(name, name),
        )
        for name, tensor in weights_of(module, f"the reference of {case.name}").items()
    )


def tied_names(specs: Iterable[TensorSpec]) -> dict[str, str]:
    """Of each parameter that is another one too, the name by which that is drawn."""
    return {spec.name: spec.drawn_as for spec in specs if spec.drawn_as not in ("", spec.name)}


@torch.no_grad()
def run_reference(
    case: Case,
    reference: nn.Module,
    calls: Calls,
    arithmetic: Floats | Exact,
    locks: Mapping[str, Lock] | None,
    *,
    tied: Mapping[str, str] | None = None,
    taps: bool = False,
    within: Callable[[nn.Module], AbstractContextManager[object]] = lambda _module: nullcontext(),
) -> ReferenceRun:
    """Run the reference once in an arithmetic.

    Args:
        case: the case of the reference.
        reference: holds the weights; the case's `reference_in` makes of it the module that runs.
        calls: with full tensors, any shape; floating-point ones are cast to the arithmetic's dtype.
        arithmetic: of the run.
        locks: what each router shall choose, by tap name; None leaves each its own choice.
        tied: of a name in the checkpoint, that of the parameter it is tied to.
        taps: record the tensors that the case names.
        within: (cast reference) -> a context that is entered while it runs.

    Raises:
        UsageError: a router's own choice in float64 is not the top k of its scores.
        TypeError: the reference returns no tensor.
    """
    dtype = arithmetic.dtype
    called = f"reference of {case.name}, called with its inputs in {str(dtype).removeprefix('torch.')},"
    with doing(called):
        module = case.reference_in(reference, dtype)
    for name, tensor in weights_of(module, f"the reference of {case.name}").items():
        arithmetic.draw((tied or {}).get(case.prefix + name, case.prefix + name), tensor)
    given = calls.copied(dtype).changed(arithmetic.draw)
    with (
        doing(called),
        arithmetic.computing(),
        case.computing_in(module, dtype),
        within(module),
        tapping(module, case.watched if taps else {}) as tapped,
        routing(module, case.routers, locks, watch=case.watches_routers) as routed,
    ):
        dropped: list[Shape] = []
        outputs = given.run(module, state=tuple(case.state), dropped=dropped)
    if locks is None and dtype == torch.float64:
        check_choices(case.name, case.routers, routed)
    rules = {router.name: (routed.scores(router), routed.groups_of(router)) for router in case.routers}
    found = {**outputs, **tapped}
    split = {name: arithmetic.split(x, exponents=taps) for name, x in found.items()}
    return ReferenceRun(
        outputs={name: split[name][0] for name in outputs},
        routing={name: arithmetic.split(x)[0] for name, x in routed.tensors.items()},
        taps={name: split[name][0] for name in tapped},
        rules=rules,
        unlocked=tuple(routed.unlocked),
        residues={name: residues for name, (_, residues) in split.items() if residues},
        seen=arithmetic.seen,
        dropped=tuple(dropped),
    )


def locks_of(case: Case, oracle: ReferenceRun) -> dict[str, Lock]:
    """The oracle's choice of each router, (tokens, k), integers, as a Lock, by the tap name of the choice."""
    experts = {router.name: oracle.routing[oracle.rules[router.name][0]].shape[-1] for router in case.routers}
    return {router.chosen: Lock(oracle.routing[router.chosen], experts[router.name]) for router in case.routers}
