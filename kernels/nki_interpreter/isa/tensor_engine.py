"""nc_matmul and nc_transpose."""

from __future__ import annotations

import numpy as np
from tp_harness.kernels.nki_interpreter import dtypes
from tp_harness.kernels.nki_interpreter.isa.constants import engine, matmul_perf_mode
from tp_harness.kernels.nki_interpreter.isa.operands import (
    ON_CHIP,
    PSUM,
    SBUF,
    begin,
    destination,
    flat,
    flat32,
    refuse,
    source,
    store,
)
from tp_harness.kernels.nki_interpreter.memory import Array, MemoryRegion, Written
from tp_harness.kernels.nki_interpreter.session import Simulation
from tp_harness.kernels.nki_interpreter.targets import PARTITIONS, PSUM_BANK_BYTES
from tp_harness.kernels.nki_interpreter.tensors import NkiTensor

_MOVING_MAX = 512
_VECTOR_TRANSPOSE_MAX = 32


def nc_matmul(
    dst: NkiTensor,
    stationary: NkiTensor,
    moving: NkiTensor,
    is_stationary_onezero: bool = False,
    is_moving_onezero: bool = False,
    is_transpose: bool = False,
    accumulate: bool | None = None,
    tile_position: tuple[int, ...] = (),
    tile_size: tuple[int, ...] = (),
    perf_mode: matmul_perf_mode = matmul_perf_mode.none,
    name: str | None = None,
) -> None:
    """Write or add stationary.T @ moving to a PSUM tile, in float32; NotImplementedError for hints not covered."""
    running = begin("nc_matmul")
    if is_stationary_onezero or is_moving_onezero or is_transpose:
        raise NotImplementedError("nc_matmul: onezero hints and is_transpose are not covered")
    dst = destination("nc_matmul", "dst", dst, PSUM)
    stationary = source("nc_matmul", "stationary", stationary, SBUF)
    moving = source("nc_matmul", "moving", moving, SBUF)
    _check_matmul_types(dst, stationary, moving)
    _check_matmul_shapes(dst, stationary, moving)
    _check_matmul_mode(running, perf_mode)
    _check_matmul_tiling(running, stationary, tile_position, tile_size)
    _check_bank(dst)
    product = flat32(stationary).T @ flat32(moving)
    if _accumulates(dst, accumulate):
        product = flat(dst) + product
    store(dst, product, Written.BY_MATMUL)


def _check_matmul_types(dst: NkiTensor, stationary: NkiTensor, moving: NkiTensor) -> None:
    for operand, value in (("stationary", stationary), ("moving", moving)):
        if value.dtype.kind != "float":
            refuse("matmul-dtype", "nc_matmul", operand, f"is {value.dtype}")
    if (stationary.dtype is dtypes.float32) != (moving.dtype is dtypes.float32):
        detail = f"is {moving.dtype}, stationary is {stationary.dtype}"
        refuse("matmul-fp32-pair", "nc_matmul", "moving", detail)
    if dst.dtype is not dtypes.float32:
        refuse("matmul-dst-dtype", "nc_matmul", "dst", f"is {dst.dtype}")


def _check_matmul_shapes(dst: NkiTensor, stationary: NkiTensor, moving: NkiTensor) -> None:
    if stationary.shape[0] != moving.shape[0]:
        detail = f"{moving.shape[0]} partitions, stationary has {stationary.shape[0]}"
        refuse("matmul-contraction", "nc_matmul", "moving", detail)
    rows, columns = stationary.elements_per_partition, moving.elements_per_partition
    if rows > PARTITIONS:
        refuse("matmul-stationary", "nc_matmul", "stationary", f"{rows} free elements")
    if columns > _MOVING_MAX:
        refuse("matmul-moving", "nc_matmul", "moving", f"{columns} free elements")
    if (dst.shape[0], dst.elements_per_partition) != (rows, columns):
        refuse("matmul-shape", "nc_matmul", "dst", f"shape {dst.shape}, the product is ({rows}, {columns})")


def _check_matmul_mode(running: Simulation, mode: matmul_perf_mode) -> None:
    if mode.value not in running.target.matmul_perf_modes:
        refuse("matmul-perf-mode", "nc_matmul", "perf_mode", f"{mode.value} was asked for")
    if mode is not matmul_perf_mode.none:
        raise NotImplementedError(f"nc_matmul: perf_mode {mode.value} is not covered")


def _check_matmul_tiling(
    running: Simulation, stationary: NkiTensor, position: tuple[int, ...], size: tuple[int, ...]
) -> None:
    if not position and not size:
        return
    if len(position) != 2 or len(size) != 2:
        refuse(
            "matmul-tiling",
            "nc_matmul",
            "tile_size",
            f"tile_position {position}, tile_size {size}: both are pairs",
        )
    sides = running.target.matmul_tile_sides
    used = (stationary.shape[0], stationary.elements_per_partition)
    for axis, start, side, needed in zip(("row", "column"), position, size, used, strict=True):
        if side not in sides:
            refuse("matmul-tiling", "nc_matmul", "tile_size", f"{axis} size {side}, legal: {sides}")
        if start % side or not 0 <= start < PARTITIONS:
            refuse("matmul-tiling", "nc_matmul", "tile_position", f"start {axis} {start} for size {side}")
        if needed > side:
            refuse("matmul-tiling", "nc_matmul", "stationary", f"{needed} {axis}s in a tile of {side}")


def _check_bank(dst: NkiTensor) -> None:
    first, span = dst.partition_byte_offset, dst.partition_byte_span
    if first // PSUM_BANK_BYTES != (first + span - 1) // PSUM_BANK_BYTES:
        detail = f"bytes {first} to {first + span} of a partition are in two banks"
        refuse("matmul-bank", "nc_matmul", "dst", detail)


def _accumulates(dst: NkiTensor, accumulate: bool | None) -> bool:
    """Decide whether to add to dst, and refuse what hardware leaves undefined."""
    if accumulate is False:
        return False
    states = dst.states()
    if accumulate is None:
        if states == {Written.NO}:
            return False
        if Written.NO in states:
            refuse("accumulate-mixed", "nc_matmul", "dst", "only a part of dst has been written")
    if Written.NO in states:
        refuse("accumulate-unwritten", "nc_matmul", "dst", "accumulate=True, but no matmul wrote here yet")
    if Written.BY_ENGINE in states:
        refuse("accumulate-nonmatmul", "nc_matmul", "dst", "dst was set by another instruction")
    return True


def nc_transpose(dst: NkiTensor, data: NkiTensor, engine: engine = engine.unknown, name: str | None = None) -> None:
    """Swap the partition axis and the (flattened) free axis of a tile."""
    running = begin("nc_transpose")
    dst = destination("nc_transpose", "dst", dst, ON_CHIP)
    data = source("nc_transpose", "data", data, ON_CHIP)
    on_tensor = _transposes_on_tensor_engine(engine, dst, data)
    _check_transpose_size(data, PARTITIONS if on_tensor else _VECTOR_TRANSPOSE_MAX)
    shape = (data.elements_per_partition, data.shape[0])
    if (dst.shape[0], dst.elements_per_partition) != shape:
        refuse("transpose-shape", "nc_transpose", "dst", f"shape {dst.shape}, the transpose is {shape}")
    if dst.dtype is not data.dtype:
        refuse("transpose-dtype", "nc_transpose", "dst", f"is {dst.dtype}, data is {data.dtype}")
    values = flat(data)
    if on_tensor and not running.target.transpose_keeps_nonfinite:
        _check_finite(values)
    store(dst, values.T, Written.BY_MATMUL if on_tensor else Written.BY_ENGINE)


def _transposes_on_tensor_engine(asked: engine, dst: NkiTensor, data: NkiTensor) -> bool:
    """Pick the engine: the one asked for, else Tensor Engine where the memories allow it."""
    fits = data.buffer is MemoryRegion.sbuf and dst.buffer is MemoryRegion.psum
    if asked is engine.tensor and not fits:
        detail = f"data in {data.buffer.value}, dst in {dst.buffer.value}"
        refuse("transpose-memory", "nc_transpose", "dst", detail)
    if asked not in (engine.tensor, engine.vector, engine.unknown):
        refuse("engine", "nc_transpose", "engine", f"{asked.name} is not one of tensor, vector")
    return fits and asked is not engine.vector


def _check_transpose_size(data: NkiTensor, limit: int) -> None:
    if data.shape[0] > limit or data.elements_per_partition > limit:
        detail = f"{data.shape[0]} x {data.elements_per_partition}, this engine takes {limit} x {limit}"
        refuse("transpose-size", "nc_transpose", "data", detail)


def _check_finite(values: Array) -> None:
    # A finite sum has finite terms; one sum is much cheaper than looking at each term.
    if np.isfinite(np.add.reduce(values, axis=None, dtype=np.float32)):
        return
    bad = ~np.isfinite(dtypes.to_float32(values))
    if bad.any():
        partition, element = (int(axis[0]) for axis in np.nonzero(bad))
        detail = f"{values[partition, element]} at partition {partition}, element {element}"
        refuse("transpose-finite", "nc_transpose", "data", detail)
