"""DTensors of a user's module: a rank's own data of them, and their placement in the words of placements.py.

Reading one never communicates. A mesh has all ranks of the group, in their order.

Not covered: meshes of some ranks, sums that are no sum (Partial("avg")).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import UsageError
from ..libraries.torch_private import arrived, split_factor, without_modes
from .on_mesh import OnMesh, on_mesh
from .placements import KVHeads, Partial, Placement, Replicate, Shard, StridedShard


class DTensorError(UsageError):
    """A DTensor that cannot be read; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Placed:
    """How a DTensor is placed, made of JSON values."""

    kind: str
    dim: int = 0
    stride: int = 1
    uneven: bool = False
    sizes: tuple[tuple[str, int], ...] = ()  # of a mesh of several dimensions
    along: tuple[tuple[tuple[str, ...], Placed], ...] = ()

    @staticmethod
    def of(placement: Placement) -> Placed:
        """A placement that `placement_of` has returned, as JSON values."""
        if isinstance(placement, OnMesh):
            along = tuple((axes, Placed.of(each)) for axes, each in placement.along)
            return Placed(kind=OnMesh.__name__, sizes=placement.sizes, along=along)
        dim, stride = getattr(placement, "dim", 0), getattr(placement, "stride", 1)
        uneven = isinstance(placement, Shard) and placement.uneven
        return Placed(kind=type(placement).__name__, dim=dim, stride=stride, uneven=uneven)

    @property
    def placement(self) -> Placement:
        """The Placement that this describes."""
        if self.kind == OnMesh.__name__:
            return OnMesh(self.sizes, tuple((axes, each.placement) for axes, each in self.along))
        cut = {"Shard": Shard(self.dim, uneven=self.uneven), "StridedShard": StridedShard(self.dim, self.stride)}
        return {**cut, "Replicate": Replicate(), "Partial": Partial()}[self.kind]


def is_dtensor(x: object) -> bool:
    """Whether x is a DTensor, without importing torch.distributed.tensor, which takes a second."""
    return is_dtensor_type(type(x))


def is_dtensor_type(kind: type) -> bool:
    """Whether a type is DTensor or derived from it; see `is_dtensor`."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and issubclass(kind, module.DTensor)


def local(x: Any) -> torch.Tensor:
    """A DTensor's data on this rank, in the local shape; any other tensor as it is, once its collective is done."""
    return arrived(x.to_local() if is_dtensor(x) else x)


def whole(x: Any) -> torch.Tensor:
    """A DTensor's full data, gathered unseen by recorders of collectives; any other tensor as `local` gives it.

    All ranks must call it.
    """
    if not is_dtensor(x):
        return local(x)
    with without_modes():
        full: torch.Tensor = x.full_tensor()
        return full


def like(full: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """A full tensor of any shape in the form of `x`: a DTensor with the placement of `x`, if x is one; else as it is.

    Raises:
        DTensorError: as `placement_of`.
    """
    placement = placement_of("", x)
    return full if placement is None else as_placed(placement.shard(full, _rank(x), _size(x)), x)


def as_placed(shard: torch.Tensor, x: Any) -> torch.Tensor:
    """This rank's shard, of any shape, in the form of `x`: a DTensor of x's shape and placement, if x is a DTensor."""
    if not is_dtensor(x):
        return shard
    arguments = {"run_check": False, "shape": x.shape, "stride": x.stride()}
    placed: torch.Tensor = type(x).from_local(shard, x.device_mesh, x.placements, **arguments)
    return placed


def placement_of(name: str, x: Any) -> Placement | None:
    """How a DTensor is placed, None for any other tensor; `name` is what a message calls it.

    Raises:
        DTensorError: the mesh is not one of all ranks in their order, or the placement is none of ours.
    """
    if not is_dtensor(x):
        return None
    mesh = x.device_mesh
    ranks, world = mesh.mesh.flatten().tolist(), torch.distributed.get_world_size()
    if ranks != list(range(world)):
        raise DTensorError(
            f"{name} is a DTensor on a mesh of shape {list(mesh.shape)} with ranks {ranks}; a mesh of all {world} "
            f"ranks in their order is needed, as init_device_mesh(device, ({world},)) makes it."
        )
    axes: dict[str, int] = dict(zip(mesh.mesh_dim_names or map(str, range(mesh.ndim)), mesh.shape, strict=True))
    along: dict[tuple[str, ...], Placement] = {}
    shape = list(x.shape)
    for (axis, size), placed in zip(axes.items(), x.placements, strict=True):
        if size > 1:
            along[(axis,)] = _ours(name, placed, shape, size)
            if isinstance(cut := along[(axis,)], Shard):
                shape[cut.dim] = -(-shape[cut.dim] // size)  # what the next axis cuts
    return on_mesh(axes, along)


class Reader:
    """Reads a rank's own data of a module's tensors; `placed` has how each DTensor among them is placed, by name."""

    def __init__(self) -> None:
        self.placed: dict[str, Placed] = {}

    def __call__(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """The rank's own data of a tensor."""
        if placement := placement_of(name, x):
            self.placed[name] = Placed.of(placement)
        return local(x)


def _ours(name: str, placement: Any, shape: Sequence[int], size: int) -> Placement:
    """Of a DTensor of that full shape: torch cuts what does not divide over the ranks unevenly."""
    tensor = sys.modules["torch.distributed.tensor"]
    if type(placement) is tensor.Shard:
        return Shard(placement.dim, uneven=shape[placement.dim] % size != 0)
    if (blocks := split_factor(placement)) is not None:
        return StridedShard(placement.dim, blocks)
    if type(placement) is tensor.Replicate:
        return Replicate()
    if type(placement) is tensor.Partial and placement.reduce_op == "sum":
        return Partial()
    raise DTensorError(f"{name} is a DTensor placed as {placement}; Shard(dim), Replicate() or Partial() is needed.")


def _rank(x: Any) -> int:
    return int(x.device_mesh.get_rank())


def _size(x: Any) -> int:
    return int(x.device_mesh.size())


def agree(said: Placement, read: Placement, ndim: int, size: int) -> bool:
    """Whether two placements cut a tensor of `ndim` dimensions alike on `size` ranks.

    Args:
        said: any placement, as a Case says it.
        read: Shard, StridedShard, Replicate or Partial, as a DTensor has it, or several on a mesh.
        ndim: the number of dimensions.
        size: the number of ranks.
    """
    if size == 1:
        return True
    if isinstance(said, (Shard, KVHeads)) and isinstance(read, Shard):
        shared = isinstance(said, KVHeads) and said.num_heads % size != 0  # several ranks hold one head
        padded = isinstance(said, Shard) and said.pad_to is not None
        return not shared and not padded and said.dim % ndim == read.dim % ndim
    if isinstance(said, StridedShard) and isinstance(read, StridedShard):
        return (said.dim % ndim, said.stride) == (read.dim % ndim, read.stride)
    if isinstance(said, OnMesh) and isinstance(read, OnMesh):
        return _agree_along(said, read, ndim)
    return type(said) is type(read)


def _agree_along(said: OnMesh, read: OnMesh, ndim: int) -> bool:
    """Whether they do so along each axis, whatever the axes are called."""
    forms = []
    for each in (said, read):
        names = [axis for axis, _ in each.sizes]
        places = [[names.index(axis) for axis in axes] for axes, _ in each.along]
        forms.append(([size for _, size in each.sizes], places))
    steps = zip(said.steps(0), read.steps(0), strict=False)
    return forms[0] == forms[1] and all(agree(one, other, ndim, count) for (one, _, count), (other, _, _) in steps)
