"""A mesh: the ranks of a run along several axes, as torch's DeviceMesh has them, with a group along each axis."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from ..errors import UnknownNameError, UsageError
from .ambient import holding
from .group import Group, TorchGroup, current_group

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

ONE_AXIS = "tp"  # of a mesh that nobody has declared


class MeshError(UsageError):
    """Axes that do not make a mesh of the ranks there are."""


def check_sizes(axes: Mapping[str, int], world: int, of: str) -> None:
    """Check that the sizes of a mesh multiply to the number of ranks; `of` begins the message.

    Raises:
        MeshError: they do not; the message has both numbers.
    """
    product = math.prod(axes.values())
    if product != world:
        sizes = " x ".join(f"{axis} {size}" for axis, size in axes.items())
        raise MeshError(
            f"{of} is {sizes} = {product} ranks, and the degree is {world}: run it at --tp {product}, or let the sizes "
            "follow from the degree."
        )


class Mesh:
    """The ranks 0 to world - 1 of a group in rows of named axes; of neighbouring ranks the last axis differs.

    All ranks must make it, with the same axes in one order.

    Raises:
        MeshError: the sizes do not multiply to the group's size.
    """

    def __init__(self, axes: Mapping[str, int], group: Group) -> None:
        check_sizes(axes, group.size, "the mesh")
        self.axes = dict(axes)
        self._group = group
        self._groups = {
            axis: group if size == group.size else group.subgroup(self.parts(axis), axis) for axis, size in axes.items()
        }

    def __getitem__(self, axis: str) -> Group:
        """This rank's group along an axis: rank, size and all collectives.

        Raises:
            UnknownNameError: the mesh has no such axis.
        """
        if axis not in self._groups:
            raise UnknownNameError("axis of the mesh", axis, self.axes)
        return self._groups[axis]

    def size(self, axis: str) -> int:
        """The number of ranks along an axis."""
        return self[axis].size

    def rank(self, axis: str) -> int:
        """This rank's number along an axis."""
        return self[axis].rank

    def parts(self, axis: str) -> list[list[int]]:
        """The ranks of every group along an axis."""
        ranks = torch.arange(self._group.size).view(*self.axes.values())
        parts: list[list[int]] = ranks.movedim([*self.axes].index(axis), -1).reshape(-1, self.axes[axis]).tolist()
        return parts

    def axis_of(self, members: tuple[int, ...]) -> str:
        """The axis along which this rank has a group of these ranks; "" for all ranks, and if there is none."""
        return next((axis for axis, group in self._groups.items() if members and group.members == members), "")

    @cached_property
    def device_mesh(self) -> DeviceMesh:
        """torch's DeviceMesh with the names of these axes, on the process groups of `mesh[axis]` where these have any.

        Raises:
            UsageError: torch.distributed has no group here, as in the ranks of backend local.
        """
        if not torch.distributed.is_initialized():
            raise UsageError(
                "a DeviceMesh needs torch.distributed, which the ranks of backend local do not have: use mesh[axis], "
                "or --backend gloo"
            )
        from torch.distributed.device_mesh import DeviceMesh, init_device_mesh  # noqa: PLC0415  (it takes a while)

        names, sizes = tuple(self.axes), tuple(self.axes.values())
        along = [group for group in self._groups.values() if isinstance(group, TorchGroup)]
        if len(along) < len(names):
            return init_device_mesh(self._group.device_type, sizes, mesh_dim_names=names)
        groups: list[Any] = [group.process_group or torch.distributed.group.WORLD for group in along]
        ranks = torch.arange(self._group.size).view(sizes)
        return DeviceMesh.from_group(groups, self._group.device_type, ranks, mesh_dim_names=names)


_ambient: ContextVar[Mesh | None] = ContextVar("mesh", default=None)


def current_mesh() -> Mesh:
    """The ambient mesh: that of the Case, else one axis "tp" of all ranks of `current_group()`."""
    mesh = _ambient.get()
    return mesh or mesh_of({ONE_AXIS: current_group().size}, current_group())


def mesh_of(axes: Mapping[str, int], group: Group) -> Mesh:
    """The mesh of a group with these axes, always the same one.

    Raises:
        MeshError: as `Mesh`.
    """
    key = tuple(axes.items())
    if key not in group.meshes:
        group.meshes[key] = Mesh(axes, group)
    mesh: Mesh = group.meshes[key]
    return mesh


@contextmanager
def use_mesh(mesh: Mesh) -> Iterator[Mesh]:
    """Make `mesh` the ambient mesh of this thread for the duration."""
    with holding(_ambient, mesh):
        yield mesh
