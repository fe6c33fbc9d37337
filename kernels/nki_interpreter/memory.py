"""Memories and the storage of one tensor: values, and for each element whether and how it was written."""

from __future__ import annotations

from enum import Enum
from math import prod
from typing import Any

import numpy as np
from tp_harness.kernels.nki_interpreter import dtypes
from tp_harness.kernels.nki_interpreter.dtypes import DType
from tp_harness.kernels.nki_interpreter.rules import violate
from tp_harness.kernels.nki_interpreter.session import Simulation
from tp_harness.kernels.nki_interpreter.targets import PARTITIONS, PSUM_BANKS

Array = np.ndarray[Any, Any]


class MemoryRegion(Enum):
    """Where a tensor lives."""

    sbuf = "sbuf"
    psum = "psum"
    private_hbm = "private_hbm"
    shared_hbm = "shared_hbm"

    @property
    def on_chip(self) -> bool:
        """Tell SBUF and PSUM from HBM."""
        return self in (MemoryRegion.sbuf, MemoryRegion.psum)


class Written(Enum):
    """How an element came to its value; PSUM accumulation depends on it."""

    NO = 0
    BY_ENGINE = 1
    BY_MATMUL = 2


class Storage:
    """The memory of one tensor; `uniform` is the state of all elements, None when `states` knows."""

    def __init__(self, values: Array, dtype: DType, region: MemoryRegion, name: str, state: Written) -> None:
        """Own `values`, all in the same state."""
        self.values = values
        self.dtype = dtype
        self.region = region
        self.name = name
        self.uniform: Written | None = state
        # np.zeros is lazy: the pages are only touched when a tensor is written in parts.
        self.states: Array = np.zeros(values.shape, dtype=np.uint8)
        self._session: Simulation | None = None

    @property
    def partition_bytes(self) -> int:
        """Bytes this tensor takes in each partition."""
        elements: int = prod(self.values.shape[1:])
        return elements * self.dtype.itemsize

    def charge(self, session: Simulation) -> None:
        """Count the tile as live until nothing refers to it."""
        self._session = session
        live = session.accounting.take(self.region.value, self.partition_bytes)
        if self.region is MemoryRegion.sbuf and live > session.target.sbuf_partition_bytes:
            limit = session.target.sbuf_partition_bytes
            self._refuse("sbuf-capacity", f"{live:,} bytes per partition live, {limit:,} exist")
        if self.region is MemoryRegion.psum and live > PSUM_BANKS:
            self._refuse("psum-capacity", f"{live} banks live, {PSUM_BANKS} exist")

    def _refuse(self, rule: str, detail: str) -> None:
        detail = f"tile {self.values.shape} of {self.dtype}: {detail}"
        violate(rule, instruction="nl.ndarray", operand=self.name or self.region.value, detail=detail)

    def __del__(self) -> None:
        """Free the tile."""
        if self._session is not None:
            self._session.accounting.give_back(self.region.value, self.partition_bytes)

    def mark(self, states: Array, state: Written) -> None:
        """Record that the elements seen through the view `states` were written."""
        if self.uniform is state:
            return
        if states.size == self.states.size:
            self.uniform = state
            return
        if self.uniform is not None:
            self.states.fill(self.uniform.value)
            self.uniform = None
        states[...] = state.value


def allocate(shape: tuple[int, ...], dtype: DType, region: MemoryRegion, name: str, session: Simulation) -> Storage:
    """Make room for a tensor; floats hold NaN and integers 4 until something is written."""
    for size in shape:
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            _refuse_shape("tile-shape", shape, region, name, f"dimension {size!r}")
    if region.on_chip:
        if len(shape) < 2:
            _refuse_shape("tile-rank", shape, region, name, f"{len(shape)} dimension")
        if shape[0] > PARTITIONS:
            _refuse_shape("partition-limit", shape, region, name, f"{shape[0]} partitions")
    values = np.full(shape, dtypes.unwritten(dtype), dtype=dtype.numpy)
    storage = Storage(values, dtype, region, name, Written.NO)
    if region.on_chip:
        storage.charge(session)
    return storage


def _refuse_shape(rule: str, shape: object, region: MemoryRegion, name: str, detail: str) -> None:
    detail = f"{detail} in shape {shape}"
    violate(rule, instruction="nl.ndarray", operand=name or region.value, detail=detail)
