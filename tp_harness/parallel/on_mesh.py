"""Placements along the axes of a mesh, as one placement over all its ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch

from .placements import KVHeads, Partial, Placement, ReplicaError, Replicate, Shard, check_same_bits, shape_only

Along = tuple[tuple[str, ...], Placement]  # axes, the last fastest, and how their ranks together hold a tensor


@dataclass(frozen=True)
class OnMesh(Placement):
    """Each of `along` cuts what the one before it has left; along other axes, ranks hold the same.

    Args:
        sizes: every axis and its ranks, the last axis fastest.
        along: in the order of the axes, placements along some of them; no axis is in two.
    """

    sizes: tuple[tuple[str, int], ...]
    along: tuple[Along, ...]

    def __str__(self) -> str:
        placed = ", ".join(f"{' and '.join(axes)}: {placement}" for axes, placement in self.along)
        return f"{{{placed}}} on {' x '.join(f'{axis} {size}' for axis, size in self.sizes)}"

    def shard(self, full: torch.Tensor, rank: int, size: int) -> torch.Tensor:
        """The shard of a shard for each of `along`, of the shape that the last one gives."""
        for placement, number, count in self.steps(rank):
            full = placement.shard(full, number, count)
        return full

    @property
    def inert(self) -> bool:  # type: ignore[override]
        """As `Placement.inert`, of each of `along`."""
        return all(placement.inert for _, placement in self.along)

    def fitted(self, shape: Sequence[int]) -> OnMesh:
        """As `Placement.fitted`: each of `along` for the shape that those before it leave."""
        along = []
        for (axes, placement), (_, number, count) in zip(self.along, self.steps(0), strict=True):
            along.append((axes, placement.fitted(shape)))
            shape = placement.shard(shape_only(shape), number, count).shape
        return replace(self, along=tuple(along))

    def padding(self, shape: Sequence[int], rank: int, size: int) -> torch.Tensor | None:
        """As `Placement.padding`: what is no part of the full tensor."""
        left = tuple(shape)
        for placement, number, count in self.steps(rank):
            if placement.padding(left, number, count) is not None:
                return self.shard(torch.ones(tuple(shape), dtype=torch.bool), rank, size).logical_not()
            left = tuple(placement.shard(shape_only(left), number, count).shape)
        return None

    def steps(self, rank: int) -> Iterator[tuple[Placement, int, int]]:
        """Each of `along` with this rank's number and the number of ranks along its axes."""
        place = dict(zip(dict(self.sizes), self.places()[rank], strict=True))
        for axes, placement in self.along:
            number = 0
            for axis in axes:
                number = number * dict(self.sizes)[axis] + place[axis]
            yield placement, number, math.prod(dict(self.sizes)[axis] for axis in axes)

    def join(self, shards: Sequence[torch.Tensor]) -> torch.Tensor:
        """The full tensor, in its shape, joined along the last axes first; several sums are rounded once.

        Raises:
            ReplicaError: ranks that must hold the same differ; with their numbers among all ranks.
        """
        dtype = shards[0].dtype
        if sum(isinstance(placement, Partial) for _, placement in self.along) > 1 and dtype.is_floating_point:
            return self._join([shard.to(torch.float64) for shard in shards]).to(dtype)
        return self._join(shards)

    def _join(self, shards: Sequence[torch.Tensor]) -> torch.Tensor:
        """Join group by group: a place along the axes that are left holds a tensor and the ranks it was made of."""
        held = {place: (shards[rank], [rank]) for rank, place in enumerate(self.places())}
        named = {axis for axes, _ in self.along for axis in axes}
        others = tuple(axis for axis, _ in self.sizes if axis not in named)
        left = [axis for axis, _ in self.sizes]
        for axes, placement in reversed([*self.along, (others, Replicate())]):
            ats = [left.index(axis) for axis in axes]
            groups: dict[tuple[int, ...], list[tuple[tuple[int, ...], tuple[int, ...]]]] = {}
            for place in held:
                rest = tuple(number for i, number in enumerate(place) if i not in ats)
                groups.setdefault(rest, []).append((tuple(place[i] for i in ats), place))
            left = [axis for axis in left if axis not in axes]
            held = {
                rest: _joined(placement, [held[at] for _, at in sorted(own)], shards) for rest, own in groups.items()
            }
        return held[()][0]

    def owners(self) -> list[int]:
        """By rank, the first rank that must hold the same bits."""
        ranks = {place: rank for rank, place in enumerate(self.places())}
        named, found = {axis for axes, _ in self.along for axis in axes}, []
        for rank, place in enumerate(self.places()):
            at = {axis: place[i] if axis in named else 0 for i, (axis, _) in enumerate(self.sizes)}
            for (axes, _), (placement, number, count) in zip(self.along, self.steps(rank), strict=True):
                owner = (owners(placement, count) or range(count))[number]
                for axis in reversed(axes):
                    owner, at[axis] = divmod(owner, dict(self.sizes)[axis])
            found.append(ranks[tuple(at.values())])
        return found

    def places(self) -> list[tuple[int, ...]]:
        """Each rank's numbers along the axes."""
        return list(product(*(range(size) for _, size in self.sizes)))


Held = tuple[torch.Tensor, list[int]]  # a tensor, and the ranks whose shards it was made of


def _joined(placement: Placement, parts: Sequence[Held], shards: Sequence[torch.Tensor]) -> Held:
    ranks = [rank for _, own in parts for rank in own]
    try:
        return placement.join([tensor for tensor, _ in parts]), ranks
    except ReplicaError as error:
        first, other = (parts[number][1] for number in error.ranks)
        for a, b in zip(first, other, strict=True):
            check_same_bits(shards[a], shards[b], ranks=(a, b))
        raise


def owners(placement: Placement, size: int) -> list[int] | None:
    """By rank, the first of `size` ranks that must hold the same bits; None where the placement does not say."""
    if isinstance(placement, OnMesh):
        return placement.owners()
    if isinstance(placement, (Replicate, KVHeads)):
        copies = placement.replicas(size) if isinstance(placement, KVHeads) else size
        return [rank // copies * copies for rank in range(size)]
    return None


def holder(placement: OnMesh, shape: Sequence[int], index: tuple[int, ...]) -> int:
    """The first rank whose shard of a tensor of that shape holds the element at `index`."""
    full = torch.zeros(tuple(shape), dtype=torch.bool)
    full[index] = True
    return next(rank for rank in range(len(placement.places())) if bool(placement.shard(full, rank, 0).any()))


Add = Callable[[Sequence[torch.Tensor]], torch.Tensor]


def added(placement: Placement, shards: Sequence[torch.Tensor], add: Add) -> tuple[Placement, list[torch.Tensor]]:
    """What every rank would hold after the sums along some axes of a mesh, and its placement then.

    Args:
        placement: one without sums, or over all ranks, is returned as it is.
        shards: one per rank, in the order of ranks, of any shape and dtype.
        add: the summands of some ranks -> their sum, of the same shape.
    """
    if not isinstance(placement, OnMesh):
        return placement, list(shards)
    summed = {axis for axes, each in placement.along if isinstance(each, Partial) for axis in axes}
    if not summed:
        return placement, list(shards)
    names, groups = [axis for axis, _ in placement.sizes], dict[tuple[int, ...], list[int]]()
    places = [
        tuple(number for axis, number in zip(names, place, strict=True) if axis not in summed)
        for place in placement.places()
    ]
    for rank, place in enumerate(places):
        groups.setdefault(place, []).append(rank)
    sums = {place: add([shards[rank] for rank in ranks]) for place, ranks in groups.items()}
    left = {axes: each for axes, each in placement.along if not isinstance(each, Partial)}
    return on_mesh(dict(placement.sizes), left), [sums[place] for place in places]


def on_mesh(axes: Mapping[str, int], placed: Mapping[tuple[str, ...], Placement]) -> Placement:
    """The placement over all ranks of a mesh that cuts a tensor along some of its axes.

    Args:
        axes: of the mesh, and their ranks.
        placed: axes -> the placement along them; several axes count as one, the last fastest.
    """
    order = list(axes)
    along: list[Along] = []
    for own, placement in sorted(placed.items(), key=lambda item: min(map(order.index, item[0]))):
        real = tuple(axis for axis in own if axes[axis] > 1)
        if not real or isinstance(placement, Replicate):
            continue
        if along and along[-1][1] == placement == Shard(getattr(placement, "dim", 0)):  # slices of slices
            real = (*along.pop()[0], *real)
        along.append((real, placement))
    sizes = tuple((axis, size) for axis, size in axes.items() if size > 1)
    if not along:
        return Replicate()
    if len(along) == 1 and along[0][0] == tuple(axis for axis, _ in sizes):  # all ranks in their order
        return along[0][1]
    return OnMesh(sizes=sizes, along=tuple(along))
