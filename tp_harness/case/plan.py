"""Which placement a parameter has: the plan's, or the only one that its shapes allow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import nn

from ..errors import UnknownNameError, UsageError, described, doing
from ..libraries.torch_private import NO_PROCESS_GROUP, stand_in_groups
from ..parallel.dtensors import agree, is_dtensor, placement_of
from ..parallel.dtensors import local as local_data
from ..parallel.group import Group, current_group, use_group
from ..parallel.mesh import mesh_of, use_mesh
from ..parallel.nxd_attributes import marked
from ..parallel.placements import Placement, PlacementError, Replicate, shape_only
from ..results.result import Collective
from .case import Case
from .guessed_placements import Placed, by_shapes
from .rehearsal import UnrehearsedError, of_torch_distributed, told_by_others
from .state_dict import weights_of

VALID = "Shard(dim), Replicate(), StridedShard(dim, stride), KVHeads(dim, num_heads), QKVHeads(...)"


OF_LOCAL = (
    "the ranks of backend local have no torch.distributed group, which the sharded module asks for: let it use "
    "tp_harness.current_group(), or run it with --backend gloo"
)


class PlanError(UsageError):
    """A parameter that cannot be placed; the message names it and the valid placements."""


def local_placement(case: Case, name: str, full: Sequence[int], local: Sequence[int], size: int) -> Placement:
    """The placement of parameter `name`, checked against the local shape of a rank's module.

    Raises:
        PlanError: the plan lacks a parameter whose local shape is not the full one, or its shard has another shape.
        PlacementError: the parameter has no such dimension, or does not divide.
    """
    if name not in case.plan:
        if tuple(full) == tuple(local):
            return Replicate()
        raise PlanError(
            f"the plan of {case.name} does not say how {name} is placed: full {list(full)}, "
            f"local {list(local)} on {size} ranks. Give it one of {VALID}."
        )
    placement = case.plan[name]
    shard = _first_shard(placement, f"{name} of {case.name}", shape_only(full), size)
    if tuple(shard.shape) != tuple(local):
        raise PlanError(
            f"{placement} makes shards {list(shard.shape)} of {name} {list(full)}, but the "
            f"sharded module holds {list(local)} on each of {size} ranks.",
            of=case.name,
        )
    return placement


def module_placement(
    plan: Mapping[str, Placement], name: str, local: torch.Tensor, full: Sequence[int], size: int
) -> Placement:
    """The placement of a parameter of any module: planned, else as marked, else as its shapes say.

    Args:
        plan: parameter name -> placement, possibly empty.
        name: the parameter's name.
        local: the rank's own parameter, of any shape; neuronx-distributed marks it with tensor_model_parallel,
            partition_dim and partition_stride (neuronx_distributed/parallel_layers/utils.py).
        full: the full shape.
        size: number of ranks.

    Raises:
        PlanError: neither plan, marks nor shapes say how the parameter is cut, or they give another local shape.
    """
    placement = plan.get(name) or marked(local, size) or by_shapes(full, local.shape, size)
    if placement is None:
        dims = [dim for dim, (f, n) in enumerate(zip(full, local.shape, strict=False)) if f != n]
        if len(full) == local.ndim and len(dims) == 1 and full[dims[0]] // size == local.shape[dims[0]]:
            raise PlanError(
                f"dimension {dims[0]} of {name} {list(full)} does not divide over {size} ranks, of which each holds "
                f"{list(local.shape)}: choose another tp_degree."
            )
        raise PlanError(
            f"it is not clear how {name} is placed: full {list(full)}, local {list(local.shape)} on {size} ranks. "
            f"Give the module class `plan = {{{name!r}: ...}}` with one of {VALID}."
        )
    shard = _first_shard(placement, name, shape_only(full), size)
    if shard.shape != local.shape:
        raise PlanError(
            f"{placement} makes shards {list(shard.shape)} of {name} {list(full)}, but the module holds "
            f"{list(local.shape)} on each of {size} ranks."
        )
    return placement


def place_all(
    plan: Mapping[str, Placement], local: Mapping[str, torch.Tensor], full: Mapping[str, Sequence[int]], size: int
) -> list[Placed]:
    """Every parameter of a rank's module with its placement, as `module_placement` finds it.

    Raises:
        PlanError: as `module_placement`.
    """
    return [
        Placed(
            name=name,
            shape=full[name],
            placement=module_placement(plan, name, tensor, full[name], size),
            guessed=name not in plan and marked(tensor, size) is None,
        )
        for name, tensor in local.items()
    ]


def try_placement(placement: Placement, tensor: torch.Tensor, name: str, size: int) -> None:
    """Cut an input or output, of any shape, and join it again where the placement is a user's own.

    Raises:
        PlacementError: it does not divide over `size` ranks, or `shard` or `join` returns no tensor or a wrong shape.
    """
    _first_shard(placement, name, tensor, size)
    if type(placement).__module__ == Placement.__module__:
        return
    with doing(f"split of {placement}, called for {name} {list(tensor.shape)},"):
        shards = placement.split(tensor, size)
    with doing(f"join of {placement}, called with {name} {list(tensor.shape)} in {size} shards,"):
        joined = placement.join(shards)
    if not isinstance(joined, torch.Tensor):
        raise PlacementError(f"join of {placement} returns a {type(joined).__name__} for {name}; a tensor is needed.")
    if joined.shape != tensor.shape:
        raise PlacementError(
            f"join of {placement} makes {list(joined.shape)} of the shards of {name} {list(tensor.shape)}: it must "
            "undo what shard does."
        )


def _first_shard(placement: Placement, name: str, full: torch.Tensor, size: int) -> torch.Tensor:
    """Rank 0's shard."""
    try:
        with doing(f"shard of {placement}, called for {name} {list(full.shape)},"):
            shard = placement.shard(full, 0, size)
    except PlacementError as error:
        raise PlacementError(f"{name} cannot be placed as {placement}: {error}.") from None
    if not isinstance(shard, torch.Tensor):
        raise PlacementError(f"shard of {placement} returns a {type(shard).__name__} for {name}; a tensor is needed.")
    return shard


def check_plan(
    case: Case, shapes: Mapping[str, Sequence[int]], tp: int, *, lingering: bool = False
) -> tuple[nn.Module, dict[str, Placement]]:
    """Build a rank's module at this degree and place every parameter; call it inside `stand_in_group`.

    Args:
        case: the case at degree `tp`.
        shapes: full name -> full shape of every tensor of the reference.
        tp: the degree.
        lingering: a module of another degree has made groups in this process, which the case may still hold.

    Returns:
        The module, and the placement of each of its parameters and buffers.

    Raises:
        PlanError: a parameter without placement, with another local shape, or unknown to the reference.
        PlacementError: a parameter that does not divide.
        UnrehearsedError: it failed in torch.distributed, after it used results of other ranks (there are none here), or
            with groups of another degree. It may succeed in the ranks, which check the same.
    """
    _check_collectives(case, tp)
    local: Mapping[str, torch.Tensor] = {}
    with use_mesh(mesh_of(case.axes(tp), current_group())), told_by_others() as calls:
        try:
            with doing(f"sharded of {case.name}, called without arguments at tp {tp},"):
                module = case.make(case.sharded)
            if not isinstance(module, nn.Module):
                raise PlanError(f"sharded of {case.name} makes a {type(module).__name__}; a torch.nn.Module is needed.")
            local = weights_of(module, f"the sharded module of {case.name}")
            return module, _placements(case, local, shapes, tp)
        except Exception as error:
            declared = isinstance(error, UsageError) and any(map(is_dtensor, local.values()))  # whatever others hold
            if tp > 1 and not declared and (lingering or calls or of_torch_distributed(error)):
                raise UnrehearsedError(described(error, whole=False).rstrip(".")) from error
            raise


def _placements(
    case: Case, local: Mapping[str, torch.Tensor], shapes: Mapping[str, Sequence[int]], tp: int
) -> dict[str, Placement]:
    check_names(case, local, shapes)
    case = replace(case, plan=planned(case, local, tp))
    return {
        name: local_placement(case, name, shapes[case.prefix + name], local_data(tensor).shape, tp)
        for name, tensor in local.items()
    }


def check_names(case: Case, local: Mapping[str, torch.Tensor], known: Iterable[str]) -> None:
    """Check that plan, sharded module and reference name the same parameters.

    Args:
        case: whose plan and prefix.
        local: the state of a rank's module, by name; any shapes.
        known: the full names of the reference's.

    Raises:
        PlanError: a name of the plan that the module lacks, or one of the module's that the reference lacks.
    """
    for name in case.plan:
        if name not in local:
            raise PlanError(f"the plan of {case.name} places {name}, which the sharded module does not have.")
    known = list(known)
    for name in local:
        if case.prefix + name not in known:
            raise PlanError(
                f"the sharded module has a parameter {name} that the reference does not have; "
                f"the reference has {', '.join(known)}.",
                of=case.name,
            )


def planned(case: Case, local: Mapping[str, torch.Tensor], size: int) -> dict[str, Placement]:
    """The plan, with the placement of every DTensor among `local` (any shapes) that it does not name.

    Raises:
        PlanError: the plan gives a DTensor another placement than it has.
        DTensorError: a DTensor that cannot be read.
    """
    plan = dict(case.plan)
    for name, tensor in local.items():
        read = placement_of(f"{name} of {case.name}", tensor)
        if read is not None and not agree(plan.setdefault(name, read), read, tensor.ndim, size):
            raise PlanError(
                f"the plan of {case.name} places {name} as {plan[name]}, but the sharded module holds a DTensor "
                f"that is placed as {read}: correct one of them, or leave {name} out of the plan."
            )
    return plan


def check_submodules(case: Case, side: str, module: nn.Module) -> None:
    """Check that a module has every submodule that `taps` and `routing` of the case name.

    Raises:
        UnknownNameError: a name of `taps` or `routing` that it lacks.
    """
    names = dict(module.named_modules())  # "" is the module itself
    routers = [source for router in case.routers for tap, (source, _) in router.sources.items() if tap != router.scores]
    for field, wanted in (("taps", [*case.taps]), ("routing", routers)):
        for name in wanted:
            if name not in names:
                raise UnknownNameError(
                    f"submodule of {case.name}'s {side}, named by {field},", name, filter(None, names)
                )


def _check_collectives(case: Case, tp: int) -> None:
    """Refuse planned calls that are not Collectives: they would differ from every recorded call."""
    planned = () if case.collectives is None else case.planned(tp)
    if not isinstance(planned, (tuple, list)) or not all(isinstance(call, Collective) for call in planned):
        raise PlanError(
            f"collectives of {case.name} returns {planned!r:.80} at tp {tp}; a tuple of Collective is needed, as "
            "tp_harness.collective(kind, group_size, shape, dtype) makes them."
        )


@contextmanager
def stand_in_group(tp: int, *, real: bool) -> Iterator[None]:
    """Let a module be built as rank 0 of `tp` without any other rank.

    With `real`, torch.distributed itself answers as if initialised (its "fake" backend), for modules that ask
    it directly and make groups of their own; collectives then give nothing useful, and few constructors need any.

    Raises:
        PlanError: without `real`, for a module that asks torch.distributed.
    """
    with use_group(Group(0, tp)):
        if not real or torch.distributed.is_initialized():  # under torchrun the group of this degree exists already
            with _asking_refused():
                yield
            return
        with stand_in_groups(tp):
            yield


@contextmanager
def _asking_refused() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError) as error:
        if NO_PROCESS_GROUP not in str(error):
            raise
        raise PlanError(f"{OF_LOCAL}.") from error
