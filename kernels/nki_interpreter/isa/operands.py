"""Checks that instructions share: is it a tile, where is it, has it been written, does it match."""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np
from tp_harness.kernels.nki_interpreter import dtypes, session
from tp_harness.kernels.nki_interpreter.isa.constants import engine
from tp_harness.kernels.nki_interpreter.memory import Array, MemoryRegion, Written
from tp_harness.kernels.nki_interpreter.operators import Operator
from tp_harness.kernels.nki_interpreter.rules import violate
from tp_harness.kernels.nki_interpreter.session import Simulation
from tp_harness.kernels.nki_interpreter.tensors import NkiTensor

SBUF = (MemoryRegion.sbuf,)
PSUM = (MemoryRegion.psum,)
ON_CHIP = (MemoryRegion.sbuf, MemoryRegion.psum)
_MAX_FREE_DIMS = 4


def begin(instruction: str) -> Simulation:
    """Count the instruction and return the simulation it belongs to."""
    running = session.current()
    if running is None:
        violate(
            "outside-kernel",
            instruction=f"nisa.{instruction}",
            operand="-",
            detail="no simulation is running",
        )
    running.accounting.instructions[instruction] += 1
    return running


def refuse(rule: str, instruction: str, operand: str, detail: str) -> NoReturn:
    """Raise the error of `rule` for one operand of an instruction."""
    violate(rule, instruction=f"nisa.{instruction}", operand=operand, detail=detail)


def tile(
    instruction: str,
    operand: str,
    value: object,
    regions: tuple[MemoryRegion, ...] = ON_CHIP,
    rule: str = "memory-space",
) -> NkiTensor:
    """Return `value` as a tile that an engine can access: memory, start partition, free dimensions."""
    if not isinstance(value, NkiTensor):
        violate("operand-type", instruction=f"nisa.{instruction}", operand=operand, detail=f"got {value!r:.60}")
    if value.buffer not in regions:
        allowed = " or ".join(region.value for region in regions)
        refuse(rule, instruction, operand, f"is in {value.buffer.value}, needs {allowed}")
    _check_start_partition(instruction, operand, value)
    if value.ndim - 1 > _MAX_FREE_DIMS:
        refuse("free-dims", instruction, operand, f"{value.ndim - 1} free dimensions in shape {value.shape}")
    return value


def source(
    instruction: str,
    operand: str,
    value: object,
    regions: tuple[MemoryRegion, ...] = ON_CHIP,
    rule: str = "memory-space",
) -> NkiTensor:
    """Return `value` as a tile to read: it has been written."""
    checked = tile(instruction, operand, value, regions, rule)
    check_written(instruction, operand, checked)
    return checked


def destination(
    instruction: str,
    operand: str,
    value: object,
    regions: tuple[MemoryRegion, ...] = ON_CHIP,
    rule: str = "memory-space",
) -> NkiTensor:
    """Return `value` as a tile to write: its elements are distinct memory."""
    checked = tile(instruction, operand, value, regions, rule)
    check_distinct(instruction, operand, checked)
    return checked


def check_written(instruction: str, operand: str, value: NkiTensor) -> None:
    """Refuse to read what nothing was written to, unless NaN was asked for."""
    running = session.current()
    if (running is None or running.raise_on_unwritten) and not value.all_written():
        refuse("read-before-write", instruction, operand, f"{value!r} is not fully written")


def check_distinct(instruction: str, operand: str, value: NkiTensor) -> None:
    """Refuse to write through a broadcast view."""
    if value.repeats_elements:
        refuse("write-broadcast", instruction, operand, f"{value!r} repeats elements (strides {value.strides})")


def _check_start_partition(instruction: str, operand: str, value: NkiTensor) -> None:
    count, start = value.shape[0], value.partition_start
    legal = (0,) if count > 64 else (0, 64) if count > 32 else (0, 32, 64, 96)
    if start not in legal:
        detail = f"{count} partitions start at partition {start}, legal: {', '.join(map(str, legal))}"
        refuse("start-partition", instruction, operand, detail)


def match(instruction: str, operand: str, value: NkiTensor, dst: NkiTensor) -> None:
    """Hold an input against dst: partitions, and elements per partition."""
    match_partitions(instruction, operand, value, dst)
    if value.elements_per_partition != dst.elements_per_partition:
        detail = f"{value.elements_per_partition} elements per partition, dst has {dst.elements_per_partition}"
        refuse("elements-match", instruction, operand, detail)


def match_partitions(instruction: str, operand: str, value: NkiTensor, dst: NkiTensor) -> None:
    """Hold an input's partitions against dst's."""
    if value.shape[0] != dst.shape[0]:
        refuse("partition-match", instruction, operand, f"{value.shape[0]} partitions, dst has {dst.shape[0]}")


def vector(instruction: str, operand: str, value: NkiTensor, partitions: int, *, float32: bool) -> Array:
    """Return a (P, 1) tile as a float32 column."""
    checked = source(instruction, operand, value)
    if checked.shape[0] != partitions or checked.elements_per_partition != 1:
        detail = f"shape {checked.shape}, needs ({partitions}, 1)"
        refuse("operand-vector", instruction, operand, detail)
    if float32 and checked.dtype is not dtypes.float32:
        refuse("operand-float32", instruction, operand, f"is {checked.dtype}")
    return dtypes.to_float32(checked.values).reshape(partitions, 1)


def choose_engine(instruction: str, asked: engine, allowed: tuple[engine, ...], tiles: dict[str, NkiTensor]) -> engine:
    """Return the engine that runs the instruction: the one asked for, or else the first allowed."""
    chosen = allowed[0] if asked is engine.unknown else asked
    if chosen not in allowed:
        names = ", ".join(item.name for item in allowed)
        refuse("engine", instruction, "engine", f"{chosen.name} is not one of {names}")
    if chosen is engine.gpsimd:
        for operand, value in tiles.items():
            if value.buffer is MemoryRegion.psum:
                refuse("gpsimd-psum", instruction, operand, f"{value!r} with engine gpsimd")
    return chosen


def operator(instruction: str, operand: str, value: object, field: str) -> Operator:
    """Return `value` as an operator token that has `field` (binary, reduce or activation)."""
    if not isinstance(value, Operator):
        violate(
            "op-legal",
            instruction=f"nisa.{instruction}",
            operand=operand,
            detail=f"{value!r:.60} is no nl operator",
        )
    if getattr(value, field) is None:
        refuse("op-legal", instruction, operand, f"{value!r} is not a {field} operator here")
    return value


def flat(value: NkiTensor) -> Array:
    """Return the elements as (partitions, elements per partition)."""
    values = value.values
    return values if values.ndim == 2 else values.reshape(value.shape[0], -1)


def flat32(value: NkiTensor) -> Array:
    """Return the elements as engines read them: float32, 2D."""
    return dtypes.to_float32(flat(value))


def store(dst: NkiTensor, values: Any, state: Written = Written.BY_ENGINE) -> None:
    """Write a result into dst, converted to its type."""
    array = np.asarray(values)
    dst.values[...] = dtypes.from_values(array.reshape(dst.shape), dst.dtype)
    dst.mark(state)
