"""Which parts of a storage hold which elements of which variable: a parameter, an input, or a copy of a run of one."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch


@dataclass(frozen=True)
class Variable:
    """A part of a storage, from `begin` to `end` in bytes, that holds elements of a variable in their order.

    `first` is the index of the part's first element in the whole variable.
    """

    name: str
    begin: int
    end: int
    dtype: torch.dtype
    first: int = 0

    def cut(self, begin: int, end: int) -> Variable:
        """The part of it within these bytes."""
        begin, end = max(begin, self.begin), min(end, self.end)
        return replace(self, begin=begin, end=end, first=self.first + (begin - self.begin) // self.dtype.itemsize)


@dataclass
class Variables:
    """The variables of a storage; what lies beside them is constant, or (`unwritten`) no operation wrote it yet."""

    reference: Any
    parts: list[Variable] = field(default_factory=list)
    unwritten: bool = False

    def put(self, part: Variable) -> None:
        """Add a part, in the place of what was there."""
        kept = [piece for old in self.parts for piece in (old.cut(0, part.begin), old.cut(part.end, old.end))]
        self.parts = [piece for piece in kept if piece.begin < piece.end] + [part]

    def of(self, x: torch.Tensor) -> Variable | None:
        """The part that holds all elements of a tensor of any shape, a view of the storage; None if none does."""
        begin, end = extent(x)
        return next((p for p in self.parts if p.begin <= begin and end <= p.end and p.dtype == x.dtype), None)

    def touches(self, x: torch.Tensor) -> bool:
        """Whether a part holds some element of a tensor of any shape."""
        begin, end = extent(x)
        return any(part.begin < end and begin < part.end for part in self.parts)


def extent(x: torch.Tensor) -> tuple[int, int]:
    """The bytes of its storage between which all elements of a tensor of any shape lie."""
    begin = int(x.storage_offset()) * x.itemsize
    if not x.numel():
        return begin, begin
    last = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return begin, begin + (last + 1) * x.itemsize


def places(x: torch.Tensor, part: Variable) -> int | torch.Tensor:
    """The index in the part's variable of a tensor's first element, if it is contiguous; else of each element.

    The latter modulo 2^32: int32, in the tensor's shape.
    """
    first = part.first + int(x.storage_offset()) - part.begin // x.itemsize
    if x.is_contiguous():
        return first
    index = torch.full((), _wrapped(first), dtype=torch.int32)
    for dim, (size, stride) in enumerate(zip(x.shape, x.stride(), strict=True)):
        steps = torch.arange(size, dtype=torch.int32) * _wrapped(stride)
        index = index + steps.view(-1, *[1] * (x.dim() - dim - 1))
    return index


def _wrapped(number: int) -> int:
    """The number with the same lower 32 bits that int32 holds."""
    return (number + 2**31) % 2**32 - 2**31
