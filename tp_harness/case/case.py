"""A case: one reference, one sharded module, and what joins them.

This is all a user writes to attach an own model; the built-in components are cases too (components.py).
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import nn

from ..arithmetic.casts import cast
from ..errors import UsageError, doing
from ..parallel.group import Group
from ..parallel.placements import Placement, Replicate
from ..results.collective import Collective
from ..results.tensor_names import without_call
from .calls import Call, Calls, Same, check_calls
from .case_fields import check_fields
from .mesh_axes import FIELDS, Axes, axis_names, mesh_axes, resolved, with_asked
from .naming.rename import Rename, Renaming
from .routing import Router
from .taps import Source

Tensors = tuple[torch.Tensor, ...]
Placed = Any  # a Placement, or a mapping from axes of the mesh to Placements, which `Case.at` resolves


def cast_copy(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy of the module with every floating-point parameter and buffer in `dtype`, in the same shapes."""
    return cast(copy.deepcopy(module), dtype)


def leave(module: nn.Module, group: Group) -> None:
    """Change nothing: the default of `Case.edit`."""


UNSAID = Replicate()  # of `output`, where a Case does not say it: a DTensor then has its own placement


@dataclass(frozen=True, kw_only=True)
class Case:
    """What to verify. Only the first four fields are needed, with `calls` instead of `inputs` for several calls.

    Args:
        name: how results call it.
        reference: makes the single-core module, with full parameters. If it has an argument `dtype`, it is given the
            dtype that the module computes in.
        sharded: makes a rank's module, called on every rank with the group as ambient `current_group()` and as
            torch's default process group. If it has an argument `dtype`, it is given the run's.
        inputs: (generator) -> what `forward` is given: a tuple of full CPU tensors, a dict of keyword arguments, or a
            `Call` of both. Floating-point tensors are rounded to bfloat16, so that every dtype sees the same numbers.
        calls: (generator) -> by name, the `Call`s of one module, one after the other, instead of `inputs`.
        plan: parameter name -> placement. A name left out is replicated if its local shape is the full one,
            and otherwise an error that names it. Here and below, axis of the mesh -> placement may stand for one;
            along an axis left out, ranks hold the same.
        mesh: the axes of `current_mesh()` and their ranks, the last axis fastest; or (tp_degree) -> them. The
            function may have the arguments `ep` and `cp`, which --ep and --cp give.
        output: the placement of each output of a call: one, a tuple of them, or a mapping from path patterns, as
            `past.*.key`, to them; those that no pattern names are replicated. Where this is not said, a DTensor has its
            own.
        input_placements: the placement of each input, a tuple, or a mapping as that of `output`; those left out are
            replicated.
        state: path pattern, as `layers.*.cache`, of tensors that both modules keep -> their placement; they are judged
            after each call.
        same: which calls must give the same, as a prompt at once and in chunks: `Same`s.
        training: run both modules in training mode, with dropouts that drop the same elements on both sides.
        collectives: (tp_degree) -> the planned calls in order; None when there is no plan, and then the ranks'
            recorded schedules are only compared with each other.
        unscheduled: kinds of collectives ("send", "all_reduce", ...) that are not compared, neither with the plan nor
            between ranks, because what a rank calls of them depends on its data.
        depth: how many layers follow one another, for the ceiling of the float32 limit.
        reduction: the length of the longest sum, for the float32 limit; 0 takes the largest parameter dimension.
        routing: the routers: the name of a submodule that has the submodules `router_logits` and `chosen` ("" is the
            module itself), or a Router, for one that returns its choice.
        taps: intermediate tensors worth comparing after a mismatch, in order of execution: the name of a submodule
            of both modules (an nn.Identity, say) -> the placement of its output. One that is called several times
            counts as its outputs joined along dimension 0.
        rename: of what each parameter of the sharded module is made that the reference has under another name: sharded
            name (a star stands for any text without a dot) -> a name of the reference, or Concat, Interleave, Stack,
            Part, Item or Transposed of some. Or a function of the sharded name that returns one of these, or None.
        replicated: True when sharding nothing is the plan (otherwise it makes a run at tp > 1 void).
        prefix, layer: where the parameters are in a checkpoint of the whole model.
        in_dtype: (reference module, dtype) -> a module that computes in dtype.
        edit: (a rank's module, its group) -> None: changes the module after it was built and loaded, and what it
            holds was recorded. Faults are put in with it.

    Raises:
        UsageError: a field of the wrong type; the message names it.
    """

    name: str
    reference: Callable[..., nn.Module]
    sharded: Callable[..., nn.Module]
    inputs: Callable[[torch.Generator], object] | None = None
    calls: Callable[[torch.Generator], Mapping[str, Call]] | None = None
    plan: Mapping[str, Placed] = field(default_factory=dict)
    mesh: Axes | Callable[..., Axes] | None = None
    output: Placed | tuple[Placed, ...] = UNSAID  # or a mapping from path patterns to them
    input_placements: tuple[Placed, ...] | Mapping[str, Placed] = ()
    state: Mapping[str, Placed] = field(default_factory=dict)
    same: tuple[Same, ...] = ()
    training: bool = False
    collectives: Callable[[int], tuple[Collective, ...]] | None = None
    unscheduled: tuple[str, ...] = ()
    reduction: int = 0
    depth: int = 1
    routing: tuple[str | Router, ...] = ()
    taps: Mapping[str, Placed] = field(default_factory=dict)
    rename: Rename = field(default_factory=dict)
    replicated: bool = False
    prefix: str = ""
    layer: int = 0
    in_dtype: Callable[[nn.Module, torch.dtype], nn.Module] = cast_copy
    edit: Callable[[nn.Module, Group], None] = leave

    # What is assumed of any module; of a family's own more is known (FamilyCase).
    on_meta: ClassVar[bool] = False  # made without memory, assigned the stored weights, computes in its input's dtype
    may_keep_state: ClassVar[bool] = True  # from call to call
    may_use_torch_distributed: ClassVar[bool] = True  # beside `current_group()`
    watches_routers: ClassVar[bool] = True  # to find by which scores they choose
    rows_are_tokens: ClassVar[bool] = False  # the first input is (batch, seq) or (batch, seq, features)

    def __post_init__(self) -> None:
        check_fields(self)

    def at(self, tp: int, asked: Mapping[str, int] | None = None) -> Case:
        """The case on `tp` ranks: every placement is one over all of them.

        At one rank a mesh that needs more is let pass, because the reference is made there.

        Args:
            tp: the degree.
            asked: the ranks along some axes, which the function `mesh` is given by keyword.

        Raises:
            UsageError: the mesh has other than `tp` ranks, or something is placed along no axis of it, or along none
                that is named where there are several.
        """
        placed = {name: getattr(self, name) for name in FIELDS}
        mesh = with_asked(self.mesh, asked or {}, self.name)
        axes = dict.fromkeys(axis_names(mesh, self.name), 1) if tp == 1 else mesh_axes(mesh, tp, self.name)
        known = mesh if mesh is None or tp == 1 else axes
        found = resolved(placed, axes, self.name) | ({"output": UNSAID} if self.output is UNSAID else {})
        return replace(self, mesh=known, **found)

    def declared_axes(self, tp: int) -> dict[str, int]:
        """The axes of the mesh on `tp` ranks; none where the case has no mesh."""
        return {} if self.mesh is None else self.axes(tp)

    def axes(self, tp: int) -> dict[str, int]:
        """The axes of the mesh on `tp` ranks, and the ranks along each.

        Raises:
            UsageError: the mesh has other than `tp` ranks.
        """
        return mesh_axes(self.mesh, tp, self.name)

    @property
    def outputs(self) -> tuple[Placement, ...]:
        """The placements that `output` holds, in its order."""
        if isinstance(self.output, Mapping):
            return tuple(self.output.values())
        return self.output if isinstance(self.output, tuple) else (self.output,)

    def given(self, generator: torch.Generator) -> Calls:
        """The calls of a run, with full tensors.

        Raises:
            UsageError: `inputs` or `calls` returns something else than is asked for.
        """
        if self.calls is not None:
            with doing(f"calls of {self.name}, called with a torch.Generator,"):
                calls = self.calls(generator)
            return check_calls(f"calls of {self.name}", calls)
        assert self.inputs is not None  # check_fields
        with doing(f"inputs of {self.name}, called with a torch.Generator,"):
            inputs = self.inputs(generator)
        try:
            return Calls.of(inputs)
        except TypeError:
            raise UsageError(
                f"inputs of {self.name} returns a {type(inputs).__name__}; a tuple of tensors is needed, for example "
                "(x,), or a dict of keyword arguments, or a Call."
            ) from None

    @property
    def routers(self) -> tuple[Router, ...]:
        """What `routing` names."""
        return tuple(Router(router) if isinstance(router, str) else router for router in self.routing)

    @property
    def watched(self) -> dict[str, Source]:
        """Tap name -> what gives it: the case's own taps, and what its routers show."""
        sources: dict[str, Source] = {name: (name, None) for name in map(without_call, self.taps)}
        for router in self.routers:
            sources |= {tap: source for tap, source in router.sources.items() if tap not in sources}
        return sources

    def planned(self, tp: int) -> tuple[Collective, ...] | None:
        """The calls that `collectives` plans at degree `tp` (ranks); None where there is no plan."""
        if self.collectives is None:
            return None
        with doing(f"collectives of {self.name}, called with {tp},"):
            return self.collectives(tp)

    def renaming(self, names: Iterable[str]) -> Renaming:
        """What the sharded module's tensors are made of; `names` are those of the reference, with the prefix."""
        known = frozenset(name.removeprefix(self.prefix) for name in names if name.startswith(self.prefix))
        return Renaming(rename=self.rename, prefix=self.prefix, known=known)

    def make(self, factory: Callable[..., nn.Module], dtype: torch.dtype = torch.float32) -> nn.Module:
        """A module of `factory` that computes in `dtype`, without memory for its parameters where the case permits."""
        arguments = {"dtype": dtype} if takes_dtype(factory) else {}
        with torch.device("meta") if self.on_meta else nullcontext():
            return factory(**arguments)

    def reference_in(self, reference: nn.Module, dtype: torch.dtype) -> nn.Module:
        """A copy of the reference that computes in `dtype`, with the same parameters.

        Raises:
            UsageError: `in_dtype` returns no module.
        """
        if self.in_dtype is not cast_copy or not takes_dtype(self.reference):
            with doing(f"in_dtype of {self.name}, called with the reference and {dtype},"):
                module = self.in_dtype(reference, dtype)
            if not isinstance(module, nn.Module):
                raise UsageError(f"in_dtype of {self.name} returns a {type(module).__name__}; a module is needed.")
            return module
        made = self.make(self.reference, dtype)
        made.load_state_dict(reference.state_dict())
        return cast(made, dtype).train(self.training)

    def computing_in(self, module: nn.Module, dtype: torch.dtype) -> AbstractContextManager[object]:
        """What is entered while a module that `reference_in` gave runs in `dtype`."""
        del module, dtype
        return nullcontext()


def takes_dtype(factory: Callable[..., nn.Module]) -> bool:
    """Whether a factory has an argument `dtype` that nobody has given a value yet."""
    given = factory.keywords if isinstance(factory, partial) else {}
    try:
        return "dtype" in inspect.signature(factory).parameters and "dtype" not in given
    except (TypeError, ValueError):  # some callables have no signature that can be read
        return False
