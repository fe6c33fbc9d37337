"""tensor_tensor, tensor_scalar, scalar_tensor_tensor, tensor_reduce and reciprocal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tp_harness.kernels.nki_interpreter import dtypes
from tp_harness.kernels.nki_interpreter.isa.constants import engine
from tp_harness.kernels.nki_interpreter.isa.operands import (
    begin,
    choose_engine,
    destination,
    flat,
    flat32,
    match,
    match_partitions,
    operator,
    refuse,
    source,
    store,
    vector,
)
from tp_harness.kernels.nki_interpreter.memory import Array, MemoryRegion
from tp_harness.kernels.nki_interpreter.operators import Operator
from tp_harness.kernels.nki_interpreter.tensors import NkiTensor

_INT32 = (dtypes.int32, dtypes.uint32)


def tensor_tensor(
    dst: NkiTensor,
    data1: NkiTensor,
    data2: NkiTensor,
    op: Operator,
    engine: engine = engine.unknown,
    name: str | None = None,
) -> None:
    """Combine two tiles element by element: dst = data1 <op> data2."""
    begin("tensor_tensor")
    dst = destination("tensor_tensor", "dst", dst)
    data1 = source("tensor_tensor", "data1", data1)
    data2 = source("tensor_tensor", "data2", data2)
    match("tensor_tensor", "data1", data1, dst)
    match("tensor_tensor", "data2", data2, dst)
    _check_two_psum("tensor_tensor", data1, "data2", data2)
    combine = operator("tensor_tensor", "op", op, "binary")
    tiles = {"dst": dst, "data1": data1, "data2": data2}
    exact = _runs_on_integers(engine, combine, tiles)
    read = flat if exact or combine.bitvec else flat32
    assert combine.binary is not None
    result = combine.binary(read(data1), read(data2))
    store(dst, result.astype(dst.dtype.numpy) if exact and not combine.compares else result)


def _runs_on_integers(asked: engine, op: Operator, tiles: dict[str, NkiTensor]) -> bool:
    """Choose the engine; GpSimd computes 32-bit integers exactly, and is the default for them off PSUM."""
    if op.bitvec:
        _check_bitvec("tensor_tensor", tiles)
    integers = all(value.dtype in _INT32 for value in tiles.values())
    in_psum = any(value.buffer is MemoryRegion.psum for value in tiles.values())
    default = engine.gpsimd if integers and not in_psum and not op.bitvec else engine.vector
    order = (default, engine.gpsimd if default is engine.vector else engine.vector)
    return choose_engine("tensor_tensor", asked, order, tiles) is engine.gpsimd and integers


def tensor_scalar(
    dst: NkiTensor,
    data: NkiTensor,
    op0: Operator,
    operand0: float | NkiTensor,
    reverse0: bool = False,
    op1: Operator | None = None,
    operand1: float | NkiTensor | None = None,
    reverse1: bool = False,
    engine: engine = engine.unknown,
    name: str | None = None,
) -> None:
    """Compute dst = (data <op0> operand0) <op1> operand1, with numbers or (P, 1) tiles."""
    begin("tensor_scalar")
    dst = destination("tensor_scalar", "dst", dst)
    data = source("tensor_scalar", "data", data)
    match("tensor_scalar", "data", data, dst)
    first = operator("tensor_scalar", "op0", op0, "binary")
    second = None if op1 is None else operator("tensor_scalar", "op1", op1, "binary")
    if (second is None) != (operand1 is None):
        refuse("operand-pair", "tensor_scalar", "operand1", f"op1 is {op1!r}, operand1 is {operand1!r:.40}")
    _check_kinds(first, second, {"dst": dst, "data": data})
    _choose_scalar_engine(engine, first, second, {"dst": dst, "data": data})
    result = _step("tensor_scalar", "operand0", first, flat(data), operand0, reverse0, strict=True)
    if second is not None:
        result = _step("tensor_scalar", "operand1", second, result, operand1, reverse1, strict=True)
    store(dst, result)


def _check_kinds(first: Operator, second: Operator | None, tiles: dict[str, NkiTensor]) -> None:
    if second is not None and first.bitvec != second.bitvec:
        refuse("bitvec-mix", "tensor_scalar", "op1", f"{first!r} with {second!r}")
    if first.bitvec:
        _check_bitvec("tensor_scalar", tiles)


def _choose_scalar_engine(asked: engine, first: Operator, second: Operator | None, tiles: dict[str, NkiTensor]) -> None:
    """GpSimd offers rsqrt only here; Scalar Engine offers multiply, add, and multiply then add."""
    choose_engine("tensor_scalar", asked, (engine.vector, engine.scalar), tiles)
    pair = (first.name, second.name if second is not None else None)
    if asked is engine.scalar and pair not in (("multiply", "add"), ("multiply", None), ("add", None)):
        refuse("engine", "tensor_scalar", "engine", f"scalar does not offer op0, op1 = {pair}")


def scalar_tensor_tensor(
    dst: NkiTensor,
    data: NkiTensor,
    op0: Operator,
    operand0: float | NkiTensor,
    op1: Operator,
    operand1: NkiTensor,
    reverse0: bool = False,
    reverse1: bool = False,
    name: str | None = None,
) -> None:
    """Apply an operator with a number or a (P, 1) tile, then one with a tile."""
    begin("scalar_tensor_tensor")
    dst = destination("scalar_tensor_tensor", "dst", dst)
    data = source("scalar_tensor_tensor", "data", data)
    operand1 = source("scalar_tensor_tensor", "operand1", operand1)
    match("scalar_tensor_tensor", "data", data, dst)
    match("scalar_tensor_tensor", "operand1", operand1, dst)
    _check_two_psum("scalar_tensor_tensor", data, "operand1", operand1)
    first = operator("scalar_tensor_tensor", "op0", op0, "binary")
    second = operator("scalar_tensor_tensor", "op1", op1, "binary")
    for operand, op in (("op0", first), ("op1", second)):
        if op.bitvec:
            refuse("op-legal", "scalar_tensor_tensor", operand, f"{op!r} is a bitvec operator")
    result = _step("scalar_tensor_tensor", "operand0", first, flat(data), operand0, reverse0, strict=False)
    other = flat32(operand1)
    assert second.binary is not None
    store(dst, second.binary(other, result) if reverse1 else second.binary(result, other))


def _step(
    instruction: str, operand: str, op: Operator, data: Array, value: Any, reverse: bool, *, strict: bool
) -> Array:
    """Apply one operator with a number or a vector; `strict` asks for float32 vectors."""
    if isinstance(value, NkiTensor):
        other: Any = vector(instruction, operand, value, data.shape[0], float32=strict and not op.bitvec)
        other = other.astype(data.dtype) if op.bitvec else other
    elif isinstance(value, bool) or not isinstance(value, int | float):
        refuse("operand-type", instruction, operand, f"{value!r:.60} is neither a number nor a tile")
    else:
        other = data.dtype.type(value) if op.bitvec else np.float32(value)
    data = data if op.bitvec else dtypes.to_float32(data)
    assert op.binary is not None
    result: Array = op.binary(other, data) if reverse else op.binary(data, other)
    return result


def tensor_reduce(
    dst: NkiTensor,
    op: Operator,
    data: NkiTensor,
    axis: int | Sequence[int],
    negate: bool = False,
    keepdims: bool = False,
    name: str | None = None,
) -> None:
    """Reduce the last free axes of a tile."""
    begin("tensor_reduce")
    dst = destination("tensor_reduce", "dst", dst)
    data = source("tensor_reduce", "data", data)
    match_partitions("tensor_reduce", "data", data, dst)
    reducing = operator("tensor_reduce", "op", op, "reduce")
    if reducing.bitvec:
        _check_bitvec("tensor_reduce", {"dst": dst, "data": data})
        if negate:
            refuse("negate-bitvec", "tensor_reduce", "negate", f"negate with {reducing!r}")
    axes = _reduced_axes(axis, data)
    values = data.values if reducing.bitvec else dtypes.to_float32(data.values)
    rows = values.reshape(*data.shape[: axes[0]], -1)
    kept = rows.size // rows.shape[-1] // data.shape[0]
    if dst.elements_per_partition != kept:
        detail = f"{dst.elements_per_partition} elements per partition, the reduction leaves {kept}"
        refuse("reduce-shape", "tensor_reduce", "dst", detail)
    assert reducing.reduce is not None
    result = reducing.reduce(rows, axis=-1)
    store(dst, -result if negate else result)


def _reduced_axes(axis: int | Sequence[int], data: NkiTensor) -> list[int]:
    given = [axis] if isinstance(axis, int) else list(axis)
    axes = sorted(item + data.ndim if item < 0 else item for item in given)
    if not axes or axes[0] < 1 or axes != list(range(axes[0], data.ndim)):
        refuse("reduce-axis", "tensor_reduce", "axis", f"axis {axis} of shape {data.shape}")
    return axes


def reciprocal(dst: NkiTensor, data: NkiTensor, name: str | None = None) -> None:
    """Compute 1 / data on Vector Engine."""
    begin("reciprocal")
    dst = destination("reciprocal", "dst", dst)
    data = source("reciprocal", "data", data)
    match("reciprocal", "data", data, dst)
    store(dst, np.float32(1.0) / flat32(data))


def _check_two_psum(instruction: str, first: NkiTensor, operand: str, second: NkiTensor) -> None:
    if first.buffer is MemoryRegion.psum and second.buffer is MemoryRegion.psum:
        refuse("two-psum-inputs", instruction, operand, f"{first!r} and {second!r}")


def _check_bitvec(instruction: str, tiles: dict[str, NkiTensor]) -> None:
    for operand, value in tiles.items():
        if value.dtype.kind != "int":
            refuse("bitvec-dtype", instruction, operand, f"is {value.dtype}")
