"""NkiTensor: a typed view of a storage. Views never copy; every index is checked (NumPy would truncate)."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, NoReturn, TypeAlias

import numpy as np
from tp_harness.kernels.nki_interpreter.dtypes import DType
from tp_harness.kernels.nki_interpreter.memory import Array, MemoryRegion, Storage, Written
from tp_harness.kernels.nki_interpreter.rules import violate

Index: TypeAlias = int | slice


@dataclass(frozen=True)
class DynamicSlice:
    """What nl.ds(start, size) makes."""

    start: int
    size: int


class NkiTensor:
    """A view: NumPy views of the values and of their states, and the partition it starts at."""

    __slots__ = ("_states", "_storage", "_values", "partition_start", "shape")

    def __init__(self, storage: Storage, values: Array, states: Array, partition_start: int = 0) -> None:
        """Look at `storage` through the views `values` and `states`."""
        self._storage = storage
        self._values = values
        self._states = states
        self.partition_start = partition_start
        self.shape: tuple[int, ...] = values.shape

    @classmethod
    def whole(cls, storage: Storage) -> NkiTensor:
        """Return the view of all of `storage`."""
        return cls(storage, storage.values, storage.states)

    # Attributes a kernel may read

    @property
    def strides(self) -> tuple[int, ...]:
        """Steps between neighbours, in elements."""
        return tuple(step // self.dtype.itemsize for step in self._values.strides)

    @property
    def offset(self) -> int:
        """Elements between the start of the storage and this view."""
        return self.byte_offset // self.dtype.itemsize

    @property
    def ndim(self) -> int:
        """Return the number of dimensions."""
        return self._values.ndim

    @property
    def size(self) -> int:
        """Return the number of elements."""
        return self._values.size

    @property
    def dtype(self) -> DType:
        """Return the element type."""
        return self._storage.dtype

    @property
    def buffer(self) -> MemoryRegion:
        """Return the memory the tensor lives in."""
        return self._storage.region

    @property
    def name(self) -> str:
        """Return the name given to nl.ndarray."""
        return self._storage.name

    def __repr__(self) -> str:
        """Show shape, type and memory."""
        return f"{self.buffer.value} tile {self.shape} of {self.dtype}"

    # What instructions use

    @property
    def values(self) -> Array:
        """Return the elements, as a NumPy view."""
        return self._values

    @property
    def byte_offset(self) -> int:
        """Bytes between the start of the storage and this view."""
        here = int(self._values.__array_interface__["data"][0])
        return here - int(self._storage.values.__array_interface__["data"][0])

    @property
    def partition_byte_offset(self) -> int:
        """Bytes between the start of a partition and this view."""
        return self.byte_offset % max(self._storage.partition_bytes, 1)

    @property
    def partition_byte_span(self) -> int:
        """Bytes from the first to past the last element of a partition."""
        steps = zip(self._values.strides[1:], self.shape[1:], strict=True)
        return sum(step * (size - 1) for step, size in steps) + self.dtype.itemsize

    @property
    def elements_per_partition(self) -> int:
        """Return the number of elements in each partition."""
        return prod(self.shape[1:])

    @property
    def repeats_elements(self) -> bool:
        """Tell whether two positions share memory (a broadcast view)."""
        return any(step == 0 and size > 1 for step, size in zip(self._values.strides, self.shape, strict=True))

    def states(self) -> set[Written]:
        """Return how the elements of this view were written."""
        if self._storage.uniform is not None:
            return {self._storage.uniform}
        low, high = int(self._states.min()), int(self._states.max())
        if low == high:
            return {Written(low)}
        return {Written(int(value)) for value in np.unique(self._states)}

    def all_written(self) -> bool:
        """Tell whether every element of this view has been written."""
        if self._storage.uniform is not None:
            return self._storage.uniform is not Written.NO
        return bool(self._states.min() != Written.NO.value)

    def mark(self, state: Written) -> None:
        """Record a write to all elements of this view."""
        self._storage.mark(self._states, state)

    # Views

    def __getitem__(self, key: Any) -> NkiTensor:
        """Index with ints, slices, nl.ds and an ellipsis; on chip the result stays at least 2D."""
        items = self._complete(key if isinstance(key, tuple) else (key,))
        index: list[Index] = []
        start = self.partition_start
        for dim, item in enumerate(items):
            entry = self._entry(dim, item)
            if self.buffer.on_chip and dim == 0:
                entry = slice(entry, entry + 1, 1) if isinstance(entry, int) else entry
                if entry.step != 1:
                    self._refuse("partition-stride", f"step {entry.step} on the partition dimension")
                start += entry.start
            index.append(entry)
        self._keep_rank(index)
        return self._view(self._values[tuple(index)], self._states[tuple(index)], start)

    def slice(self, dim: int, start: int, end: int, step: int = 1) -> NkiTensor:
        """Select start:end:step of one dimension."""
        key: list[Any] = [slice(None)] * self.ndim
        key[self._dim(dim)] = slice(start, end, step)
        return self[tuple(key)]

    def select(self, dim: int, index: int) -> NkiTensor:
        """Select one position of a dimension and drop the dimension."""
        key: list[Any] = [slice(None)] * self.ndim
        key[self._dim(dim)] = index
        return self[tuple(key)]

    def permute(self, dims: tuple[int, ...]) -> NkiTensor:
        """Reorder the dimensions; on chip the partition dimension stays first."""
        if sorted(dims) != list(range(self.ndim)):
            self._refuse("view-layout", f"{dims} is no order of {self.ndim} dimensions")
        if self.buffer.on_chip and dims[0] != 0:
            self._refuse("view-partition", f"permute{dims} moves the partition dimension")
        return self._view(self._values.transpose(dims), self._states.transpose(dims))

    def reshape(self, shape: tuple[int, ...]) -> NkiTensor:
        """Give the elements another shape without copying them."""
        shape = tuple(shape)
        if prod(shape) != self.size:
            self._refuse("view-layout", f"reshape to {shape} changes the number of elements")
        if self.buffer.on_chip and shape[0] != self.shape[0]:
            self._refuse("view-partition", f"reshape to {shape} changes the partition dimension")
        values = self._values.reshape(shape)
        if not np.may_share_memory(values, self._values):
            self._refuse("view-layout", f"reshape to {shape} would copy a view with strides {self.strides}")
        return self._view(values, self._states.reshape(shape))

    def reshape_dim(self, dim: int, shape: tuple[int, ...]) -> NkiTensor:
        """Split one dimension; one size may be -1."""
        dim = self._dim(dim)
        known = prod(size for size in shape if size != -1)
        sizes = tuple(self.shape[dim] // known if size == -1 else size for size in shape)
        return self.reshape(self.shape[:dim] + sizes + self.shape[dim + 1 :])

    def flatten_dims(self, start_dim: int, end_dim: int) -> NkiTensor:
        """Merge dimensions start_dim to end_dim."""
        merged = prod(self.shape[start_dim : end_dim + 1])
        return self.reshape((*self.shape[:start_dim], merged, *self.shape[end_dim + 1 :]))

    def expand_dim(self, dim: int) -> NkiTensor:
        """Insert a dimension of size 1; on chip not before the partitions."""
        if self.buffer.on_chip and dim == 0:
            self._refuse("view-partition", "expand_dim(0) would go before the partition dimension")
        if not 0 <= dim <= self.ndim:
            self._refuse("index-bounds", f"dimension {dim} of {self.ndim}")
        return self._view(np.expand_dims(self._values, dim), np.expand_dims(self._states, dim))

    def squeeze_dim(self, dim: int) -> NkiTensor:
        """Remove a dimension of size 1; on chip not the partitions."""
        dim = self._dim(dim)
        if self.buffer.on_chip and dim == 0:
            self._refuse("view-partition", "squeeze_dim(0) would remove the partition dimension")
        if self.shape[dim] != 1:
            self._refuse("view-layout", f"squeeze_dim({dim}) of a dimension of size {self.shape[dim]}")
        return self._view(self._values.squeeze(dim), self._states.squeeze(dim))

    def broadcast(self, dim: int, size: int) -> NkiTensor:
        """Repeat a dimension of size 1 by a step of 0; on chip not the partitions."""
        dim = self._dim(dim)
        if self.buffer.on_chip and dim == 0:
            self._refuse("view-partition", "broadcast(0, ...) would repeat partitions")
        if self.shape[dim] != 1:
            self._refuse("view-broadcast", f"dimension {dim} has size {self.shape[dim]}")
        shape = (*self.shape[:dim], size, *self.shape[dim + 1 :])
        return self._view(np.broadcast_to(self._values, shape), np.broadcast_to(self._states, shape))

    def __getattr__(self, name: str) -> NoReturn:
        """Tell documented views that are not covered from misspelt ones."""
        if name in (
            "ap",
            "view",
            "reinterpret_cast",
            "vector_select",
            "indirect",
            "rearrange",
            "get_pattern",
        ):
            raise NotImplementedError(f"NkiTensor.{name} is documented but not covered by this interpreter")
        raise AttributeError(f"NkiTensor has no attribute {name!r}")

    # Checks

    def _view(self, values: Array, states: Array, partition_start: int | None = None) -> NkiTensor:
        start = self.partition_start if partition_start is None else partition_start
        return NkiTensor(self._storage, values, states, start)

    def _refuse(self, rule: str, detail: str) -> NoReturn:
        violate(rule, instruction="view", operand=self.name or repr(self), detail=detail)

    def _dim(self, dim: int) -> int:
        if not -self.ndim <= dim < self.ndim:
            self._refuse("index-bounds", f"dimension {dim} of {self.ndim}")
        return dim % self.ndim

    def _complete(self, items: tuple[Any, ...]) -> list[Any]:
        """Replace the ellipsis, and add what was left out at the end."""
        given = [item for item in items if item is not Ellipsis]
        if len(given) > self.ndim:
            self._refuse("index-bounds", f"{len(given)} indices for {self.ndim} dimensions")
        missing: list[Any] = [slice(None)] * (self.ndim - len(given))
        at = next((i for i, item in enumerate(items) if item is Ellipsis), len(given))
        return given[:at] + missing + given[at:]

    def _entry(self, dim: int, item: Any) -> Index:
        """Turn one index into non-negative numbers inside the dimension."""
        size = self.shape[dim]
        if isinstance(item, DynamicSlice):
            item = slice(item.start, item.start + item.size)
        if isinstance(item, slice):
            step = 1 if item.step is None else item.step
            start = 0 if item.start is None else item.start
            stop = size if item.stop is None else item.stop
            start, stop = (value + size if value < 0 else value for value in (start, stop))
            if not (0 <= start < stop <= size and step >= 1):
                self._refuse("index-bounds", f"slice {start}:{stop}:{step} of dimension {dim} of {self.shape}")
            return slice(start, stop, step)
        if isinstance(item, bool) or not isinstance(item, int):
            raise TypeError(f"index {item!r}: ints, slices, nl.ds and ... are covered")
        if not -size <= item < size:
            self._refuse("index-bounds", f"index {item} of dimension {dim} of {self.shape}")
        return item % size

    def _keep_rank(self, index: list[Index]) -> None:
        """Keep the last dropped dimension at size 1 when the result would have too few."""
        least = 2 if self.buffer.on_chip else 1
        for dim in reversed(range(len(index))):
            kept = sum(isinstance(entry, slice) for entry in index)
            entry = index[dim]
            if kept < least and isinstance(entry, int):
                index[dim] = slice(entry, entry + 1, 1)
