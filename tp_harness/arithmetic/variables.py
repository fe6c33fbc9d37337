"""Which parts of a storage hold which elements of which variable: a parameter, an input, or a copy of a run of one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch


@dataclass(frozen=True)
class Variable:
    """A part of a storage, from `begin` to `end` in bytes, that holds elements of a variable.

    They are those of a view of the variable, in the view's order: `first` is the index of the view's first element in
    the variable, `form` the view's sizes and strides (empty for a contiguous one), and the part begins with the view's
    element number `skip`.
    """

    name: str
    begin: int
    end: int
    dtype: torch.dtype
    first: int = 0
    form: tuple[tuple[int, int], ...] = ()
    skip: int = 0

    def cut(self, begin: int, end: int) -> Variable:
        """The part of it within these bytes."""
        begin, end = max(begin, self.begin), min(end, self.end)
        return replace(self, begin=begin, end=end, skip=self.skip + (begin - self.begin) // self.dtype.itemsize)

    def copied(self, x: torch.Tensor, into: torch.Tensor) -> Variable | None:
        """The part that `into` becomes, a contiguous tensor, when `x` of this part and of its shape is copied to it.

        None where the elements have no such order.
        """
        begin, end = extent(into)
        skip = self.skip + int(x.storage_offset()) - self.begin // x.itemsize
        if x.is_contiguous():
            return replace(self, begin=begin, end=end, dtype=into.dtype, skip=skip)
        if self.form:
            return None
        form = tuple(zip(x.shape, x.stride(), strict=True))
        return Variable(self.name, begin, end, into.dtype, self.first + skip, form)


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
    """The index in the part's variable of a tensor's first element, if the others follow it; else of each element.

    The latter modulo 2^32: int32, in the tensor's shape.
    """
    first = part.skip + int(x.storage_offset()) - part.begin // x.itemsize
    if x.is_contiguous() and not part.form:
        return part.first + first
    if _whole_rows(x, part, first):
        (_, across), along = part.form
        row = part.first + first // along[0] * across
        return _steps(((x.shape[0], across), along), row)
    index = _steps(tuple(zip(x.shape, x.stride(), strict=True)), first)
    if not part.form:
        return index + _wrapped(part.first)
    found = torch.full((), _wrapped(part.first), dtype=torch.int32)
    for size, stride in reversed(part.form):
        rest = index // size
        found = found + (index - rest * size) * _wrapped(stride)
        index = rest
    return found


def _whole_rows(x: torch.Tensor, part: Variable, first: int) -> bool:
    """Whether a contiguous tensor is some rows of a matrix that the part holds, and the first of its elements begins
    one: then its places need no division.
    """
    of_matrix = len(part.form) == 2 and x.dim() == 2 and x.is_contiguous()
    return of_matrix and x.shape[1] == part.form[1][0] and first % x.shape[1] == 0


def _steps(form: Iterable[tuple[int, int]], first: int) -> torch.Tensor:
    """first + the sum of i_d stride_d, modulo 2^32, for all indices i: int32, in the shape of the sizes."""
    dims = tuple(form)
    index = torch.full((), _wrapped(first), dtype=torch.int32)
    for dim, (size, stride) in enumerate(dims):
        steps = torch.arange(size, dtype=torch.int32) * _wrapped(stride)
        index = index + steps.view(-1, *[1] * (len(dims) - dim - 1))
    return index


def _wrapped(number: int) -> int:
    """The number with the same lower 32 bits that int32 holds."""
    return (number + 2**31) % 2**32 - 2**31
