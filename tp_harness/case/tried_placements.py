"""The placement of each parameter: the plan's, or the only one that its shapes allow; tried on these shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

import torch

from ..errors import UsageError, doing
from ..parallel.nxd_attributes import marked
from ..parallel.placement import built_in
from ..parallel.placements import EVEN, Placement, PlacementError, Replicate, Shard, shape_only
from .case import Case
from .placing.guessed_placements import Placed, by_shapes

VALID = (
    "Shard(dim), Replicate(), StridedShard(dim, stride), FusedShard(dim, sizes), KVHeads(dim, num_heads), QKVHeads(...)"
)


class PlanError(UsageError):
    """A parameter that cannot be placed; the message names it and the valid placements."""


def local_placement(
    case: Case, name: str, full: Sequence[int], local: Sequence[int], size: int, *, rank: int = 0
) -> Placement:
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
    try:
        shard = _shard_of(placement, f"{name} of {case.name}", shape_only(full), rank, size)
    except PlacementError as error:
        fits = _otherwise(placement, full, local, rank, size)
        raise PlacementError(f"{str(error).removesuffix('.')}{fits}.") from None
    if tuple(shard.shape) != tuple(local):
        where = f"rank {rank} of {size}" if rank else f"each of {size} ranks"
        raise PlanError(
            f"{placement} makes shards {list(shard.shape)} of {name} {list(full)}, but the sharded module holds "
            f"{list(local)} on {where}{_otherwise(placement, full, local, rank, size)}.",
            of=case.name,
        )
    return placement


def _otherwise(placement: Placement, full: Sequence[int], local: Sequence[int], rank: int, size: int) -> str:
    """A clause that names Shards of the same dimension which have the local shape; "" if there is none."""
    if type(placement) is not Shard or len(full) != len(local) or not -len(full) <= placement.dim < len(full):
        return ""
    dim, fitting = placement.dim, []
    for other in (
        replace(placement, pad_to=None, uneven=True),
        replace(placement, pad_to=EVEN, uneven=False),
        replace(placement, pad_to=local[dim] * size or None, uneven=False),
    ):
        with suppress(PlacementError):
            if tuple(other.shard(shape_only(full), rank, size).shape) == tuple(local):
                fitting.append(str(other))
    return f"; {' or '.join(fitting[:2])} would fit" if fitting else ""


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
    shard = _shard_of(placement, name, shape_only(full), 0, size)
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
    _shard_of(placement, name, tensor, 0, size)
    if built_in(placement):
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


def _shard_of(placement: Placement, name: str, full: torch.Tensor, rank: int, size: int) -> torch.Tensor:
    """A rank's shard, which is tried on."""
    try:
        with doing(f"shard of {placement}, called for {name} {list(full.shape)},"):
            shard = placement.shard(full, rank, size)
    except PlacementError as error:
        raise PlacementError(f"{name} cannot be placed as {placement}: {error}.") from None
    if not isinstance(shard, torch.Tensor):
        raise PlacementError(f"shard of {placement} returns a {type(shard).__name__} for {name}; a tensor is needed.")
    return shard
