"""What a placement is: how one full tensor becomes one shard per rank, and back.

Sharding is data beside the model. Every placement is a frozen value with two pure functions, `split` and
`join`, and `join(split(x)) == x` bit for bit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch

from ..errors import UsageError


class PlacementError(UsageError):
    """A tensor that a placement cannot split over that many ranks."""


class Placement(ABC):
    """What every placement can do, with tensors of any shape and dtype. `size` is the number of ranks in the group.

    A shard has the dtype of the full tensor, and its shape, but for the dimension that is cut. All placements raise
    what is said here. `inert` says that other numbers in the padding of shards must not change what a module returns.
    """

    inert: bool = True

    @abstractmethod
    def shard(self, full: torch.Tensor, rank: int, size: int) -> torch.Tensor:
        """Rank `rank`'s shard, a view of `full` (any shape) where the layout permits.

        Raises:
            PlacementError: `full` lacks the dimension, or does not divide over `size` ranks.
        """

    @abstractmethod
    def join(self, shards: Sequence[torch.Tensor]) -> torch.Tensor:
        """The full tensor of one shard per rank, in rank order, each of the shape and dtype that `shard` gives.

        Raises:
            ReplicaError: parts that several ranks hold differ in a bit.
        """

    def split(self, full: torch.Tensor, size: int) -> tuple[torch.Tensor, ...]:
        """One shard per rank, in rank order, each as `shard` gives it.

        Raises:
            PlacementError: as `shard`.
        """
        return tuple(self.shard(full, rank, size) for rank in range(size))

    def fitted(self, shape: Sequence[int]) -> Placement:
        """This placement of full tensors of that shape: its `join` leaves out what `shard` pads them with."""
        del shape
        return self

    def padding(self, shape: Sequence[int], rank: int, size: int) -> torch.Tensor | None:
        """Where the shard of a tensor of that shape is padding.

        Returns:
            bool, of as many dimensions as the shard, each of its length or of 1; None where no rank holds padding.
        """
        del shape, rank, size
        return None


def built_in(placement: Placement) -> bool:
    """Whether it is one of this package's, which cut along one dimension, `dim` (0 where they have none)."""
    return type(placement).__module__ in {f"{__package__}.{kind}_placements" for kind in ("basic", "fused", "head")}


def check_positive(**numbers: int) -> None:
    """Check that these are positive.

    Raises:
        PlacementError: names the first that is not.
    """
    for name, number in numbers.items():
        if number < 1:
            raise PlacementError(f"{name} is {number}; a placement needs a positive number")


def check_dim(dim: object) -> None:
    """Check that it is the number of a dimension.

    Raises:
        PlacementError: it is no whole number.
    """
    if not isinstance(dim, int):
        raise PlacementError(f"dim is {dim!r:.60}; the number of a dimension is needed.")


def shape_only(shape: Sequence[int]) -> torch.Tensor:
    """A uint8 tensor of that shape to try a placement on: never written, so it takes no memory.

    Not on device "meta": torch.cat there imports the whole compiler, 1.5 s in every rank.
    """
    return torch.empty(tuple(shape), dtype=torch.uint8)


def along(full: torch.Tensor, dim: int) -> int:
    """The length of dimension `dim` of a tensor of any shape.

    Raises:
        PlacementError: it has no such dimension.
    """
    if not -full.ndim <= dim < full.ndim:
        raise PlacementError(f"a tensor of shape {tuple(full.shape)} has no dimension {dim} to shard")
    return full.shape[dim]


def share(full: torch.Tensor, dim: int, parts: int, over: str, unit: int = 1) -> int:
    """The length of one of `parts` equal parts along `dim` of a tensor of any shape.

    Args:
        full: the tensor.
        dim: the dimension.
        parts: how many.
        over: what a message calls them.
        unit: of the units that stay together, for the message.

    Raises:
        PlacementError: it has no such dimension, or does not divide.
    """
    length = along(full, dim)
    if length % parts:
        units = f" in units of {unit}" if unit > 1 else ""
        raise PlacementError(f"dimension {dim} of shape {tuple(full.shape)} does not divide over {over}{units}")
    return length // parts
