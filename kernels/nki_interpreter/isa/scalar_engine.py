"""activation: scale, bias, function and running sum on Scalar Engine."""

from __future__ import annotations

import numpy as np
from tp_harness.kernels.nki_interpreter import dtypes
from tp_harness.kernels.nki_interpreter.isa.constants import reduce_cmd
from tp_harness.kernels.nki_interpreter.isa.operands import (
    begin,
    destination,
    flat32,
    match,
    operator,
    refuse,
    source,
    store,
    vector,
)
from tp_harness.kernels.nki_interpreter.memory import Array
from tp_harness.kernels.nki_interpreter.operators import Operator
from tp_harness.kernels.nki_interpreter.session import Simulation
from tp_harness.kernels.nki_interpreter.tensors import NkiTensor

_RESETS = (reduce_cmd.reset, reduce_cmd.reset_reduce)
_REDUCES = (reduce_cmd.reduce, reduce_cmd.reset_reduce)


def activation(
    dst: NkiTensor,
    op: Operator,
    data: NkiTensor,
    bias: float | NkiTensor | None = None,
    scale: float | NkiTensor = 1.0,
    reduce_op: Operator | None = None,
    reduce_res: NkiTensor | None = None,
    reduce_cmd: reduce_cmd = reduce_cmd.idle,
    name: str | None = None,
) -> None:
    """Compute dst = op(data * scale + bias); optionally sum the result into the reduce registers.

    The documented pseudo code adds the registers twice when it reduces; the sentences around it, which are
    followed here, say once.
    """
    running = begin("activation")
    dst = destination("activation", "dst", dst)
    data = source("activation", "data", data)
    match("activation", "data", data, dst)
    function = operator("activation", "op", op, "activation")
    _check_reduce(reduce_op, reduce_cmd)
    inputs = _scaled(running, function, data, scale, bias)
    _check_range(function, inputs)
    assert function.activation is not None
    result: Array = function.activation(inputs)
    # Read before dst is written: dst may be the tile that reduce_res is in.
    registers = _update_registers(running, result, reduce_cmd)
    store(dst, result)
    if reduce_res is not None:
        _read_registers(reduce_res, registers)


def _scaled(
    running: Simulation,
    function: Operator,
    data: NkiTensor,
    scale: float | NkiTensor,
    bias: float | NkiTensor | None,
) -> Array:
    """Return data * scale + bias in float32."""
    partitions = data.shape[0]
    values = flat32(data)
    if isinstance(scale, NkiTensor):
        values = values * vector("activation", "scale", scale, partitions, float32=True)
    elif scale != 1.0:
        values = values * np.float32(scale)
    if bias is None:
        return values
    if function.name == "reciprocal" and not running.target.reciprocal_takes_bias:
        refuse("reciprocal-bias", "activation", "bias", "given with op=nl.reciprocal")
    if isinstance(bias, NkiTensor):
        added: Array = values + vector("activation", "bias", bias, partitions, float32=False)
        return added
    if not running.target.scalar_bias:
        refuse("bias-tile", "activation", "bias", f"is {bias!r:.40}; memset a (P, 1) tile")
    shifted: Array = values + np.float32(bias)
    return shifted


def _check_range(function: Operator, values: Array) -> None:
    """Refuse values for which hardware gives invalid results; NaN passes, it shows up by itself."""
    low, high = function.valid
    if np.isinf(low) and np.isinf(high):
        return
    checked = np.abs(values) if function.name == "reciprocal" else values
    smallest, largest = np.fmin.reduce(checked, axis=None), np.fmax.reduce(checked, axis=None)
    if smallest < low or largest > high:
        detail = f"values {smallest:.6g} to {largest:.6g}, valid for {function!r}: {low:.6g} to {high:.6g}"
        refuse("activation-range", "activation", "data", detail)


def _check_reduce(reduce_op: Operator | None, command: reduce_cmd) -> None:
    if reduce_op is not None and (not isinstance(reduce_op, Operator) or reduce_op.name != "add"):
        refuse("activation-reduce", "activation", "reduce_op", f"is {reduce_op!r:.40}")
    if command in _REDUCES and reduce_op is None:
        refuse("activation-reduce", "activation", "reduce_op", f"is None with reduce_cmd {command.name}")
    if command is reduce_cmd.load_reduce:
        raise NotImplementedError("activation: reduce_cmd load_reduce is not covered")


def _update_registers(running: Simulation, result: Array, command: reduce_cmd) -> Array:
    """Apply the reduce command; return the registers of the lanes in use as a column."""
    lanes = running.reduce_registers[: result.shape[0]]
    if command in _RESETS:
        lanes[:] = 0.0
    if command in _REDUCES:
        if np.isnan(lanes).any() and not np.isnan(result).any():
            refuse("reduce-registers", "activation", "reduce_cmd", f"{command.name} before any reset")
        lanes += result.sum(axis=1, dtype=np.float32)
    column: Array = lanes.reshape(-1, 1).copy()
    return column


def _read_registers(reduce_res: NkiTensor, registers: Array) -> None:
    target = destination("activation", "reduce_res", reduce_res)
    if target.shape[0] != registers.shape[0] or target.elements_per_partition != 1:
        detail = f"shape {target.shape}, needs ({registers.shape[0]}, 1)"
        refuse("operand-vector", "activation", "reduce_res", detail)
    store(target, dtypes.from_values(registers, target.dtype))
