"""dma_copy, tensor_copy and memset."""

from __future__ import annotations

from math import isfinite
from typing import Any

import numpy as np
from tp_harness.kernels.nki_interpreter import dtypes
from tp_harness.kernels.nki_interpreter.isa.constants import dge_mode, engine, oob_mode
from tp_harness.kernels.nki_interpreter.isa.operands import (
    begin,
    check_distinct,
    check_written,
    choose_engine,
    destination,
    flat,
    match,
    refuse,
    source,
    store,
)
from tp_harness.kernels.nki_interpreter.memory import MemoryRegion, Written
from tp_harness.kernels.nki_interpreter.rules import violate
from tp_harness.kernels.nki_interpreter.session import Simulation
from tp_harness.kernels.nki_interpreter.tensors import NkiTensor


def dma_copy(
    dst: NkiTensor,
    src: NkiTensor,
    priority: int | None = None,
    oob_mode: oob_mode = oob_mode.error,
    dge_mode: dge_mode = dge_mode.unknown,
    engine: engine = engine.unknown,
    name: str | None = None,
) -> None:
    """Copy between HBM and SBUF, in row-major order of both views, converting through float32."""
    running = begin("dma_copy")
    _check_dma_options(running, priority, dge_mode, engine)
    for operand, value in (("dst", dst), ("src", src)):
        if not isinstance(value, NkiTensor):
            violate("operand-type", instruction="nisa.dma_copy", operand=operand, detail=f"got {value!r:.60}")
        if value.buffer is MemoryRegion.psum:
            refuse("memory-space", "dma_copy", operand, "is in psum, needs HBM or SBUF")
    check_distinct("dma_copy", "dst", dst)
    check_written("dma_copy", "src", src)
    if dst.size != src.size:
        refuse(
            "dma-elements",
            "dma_copy",
            "src",
            f"{src.size} elements {src.shape}, dst has {dst.size} {dst.shape}",
        )
    values = src.values if src.dtype is dst.dtype else dtypes.to_float32(src.values)
    store(dst, values)


def _check_dma_options(running: Simulation, priority: int | None, mode: dge_mode, asked: engine) -> None:
    if priority is not None:
        refuse("dma-priority", "dma_copy", "priority", f"priority {priority}")
    if mode is dge_mode.hwdge and not running.target.hardware_dge:
        refuse("dma-hwdge", "dma_copy", "dge_mode", "hwdge was asked for")
    if asked is not engine.unknown and (mode is not dge_mode.hwdge or asked not in (engine.sync, engine.scalar)):
        refuse("dma-engine", "dma_copy", "engine", f"{asked.name} with dge_mode {mode.name}")


def tensor_copy(dst: NkiTensor, src: NkiTensor, engine: engine = engine.unknown, name: str | None = None) -> None:
    """Copy on chip: bit-accurate between equal types, else through float32."""
    running = begin("tensor_copy")
    dst = destination("tensor_copy", "dst", dst)
    src = source("tensor_copy", "src", src)
    match("tensor_copy", "src", src, dst)
    _choose_copy_engine(running, engine, {"dst": dst, "src": src})
    store(dst, flat(src) if src.dtype is dst.dtype else dtypes.to_float32(flat(src)))


def _choose_copy_engine(running: Simulation, asked: engine, tiles: dict[str, NkiTensor]) -> None:
    if asked is engine.scalar and not running.target.scalar_engine_copies:
        refuse("scalar-copy", "tensor_copy", "engine", "use nisa.activation with op=nl.copy")
    choose_engine("tensor_copy", asked, (engine.vector, engine.scalar, engine.gpsimd), tiles)


def memset(dst: NkiTensor, value: Any, engine: engine = engine.unknown, name: str | None = None) -> None:
    """Fill dst with a constant of its type."""
    begin("memset")
    dst = destination("memset", "dst", dst)
    _choose_memset_engine(engine, dst)
    _check_memset_value(dst, value)
    store(dst, np.full(dst.shape, value, dtype=dst.dtype.numpy), Written.BY_ENGINE)


def _choose_memset_engine(asked: engine, dst: NkiTensor) -> None:
    choose_engine("memset", asked, (engine.vector, engine.gpsimd), {"dst": dst})


def _check_memset_value(dst: NkiTensor, value: Any) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number:
        refuse("memset-value", "memset", "value", f"{value!r:.60} is no number")
    if dst.dtype.kind == "float":
        return
    limits = np.iinfo(dst.dtype.numpy)
    if not isinstance(value, int) or not isfinite(value) or not limits.min <= value <= limits.max:
        refuse("memset-value", "memset", "value", f"{value!r} into {dst.dtype}")
