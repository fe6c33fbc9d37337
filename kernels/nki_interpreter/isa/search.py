"""max8 and nc_find_index8."""

from __future__ import annotations

import numpy as np
from tp_harness.kernels.nki_interpreter import dtypes
from tp_harness.kernels.nki_interpreter.isa.operands import (
    begin,
    destination,
    flat32,
    match_partitions,
    refuse,
    source,
    store,
)
from tp_harness.kernels.nki_interpreter.memory import Array
from tp_harness.kernels.nki_interpreter.tensors import NkiTensor

_WIDTH = 8
_MOST = 16 * 1024


def max8(dst: NkiTensor, src: NkiTensor, name: str | None = None) -> None:
    """Write the 8 largest values of each partition, in descending order."""
    begin("max8")
    dst = destination("max8", "dst", dst)
    src = source("max8", "src", src)
    _check_searched("max8", "src", src, dst)
    # Sorting the negated values keeps NaN last; NaN inputs are not documented.
    store(dst, -np.sort(-flat32(src), axis=1)[:, :_WIDTH])


def nc_find_index8(dst: NkiTensor, data: NkiTensor, vals: NkiTensor, name: str | None = None) -> None:
    """Write where each of 8 values occurs; equal values take successive places, absent ones all ones."""
    begin("nc_find_index8")
    dst = destination("nc_find_index8", "dst", dst)
    data = source("nc_find_index8", "data", data)
    vals = source("nc_find_index8", "vals", vals)
    _check_searched("nc_find_index8", "data", data, dst)
    match_partitions("nc_find_index8", "vals", vals, dst)
    if vals.elements_per_partition != _WIDTH:
        refuse("index8-values", "nc_find_index8", "vals", f"{vals.elements_per_partition} elements per partition")
    if dst.dtype not in (dtypes.uint16, dtypes.uint32):
        refuse("index8-dtype", "nc_find_index8", "dst", f"is {dst.dtype}")
    missing = np.iinfo(dst.dtype.numpy).max
    store(dst, _find(flat32(data), flat32(vals), missing).astype(dst.dtype.numpy))


def _find(data: Array, vals: Array, missing: int) -> Array:
    """Return the positions, with `missing` where a value does not occur (often enough)."""
    found = np.full(vals.shape, missing, dtype=np.int64)
    equal = data[:, None, :] == vals[:, :, None]
    earlier = np.tril(vals[:, :, None] == vals[:, None, :], -1).sum(axis=2)
    for slot in range(_WIDTH):
        nth = equal[:, slot].cumsum(axis=1) == (earlier[:, slot] + 1)[:, None]
        nth &= equal[:, slot]
        found[:, slot] = np.where(nth.any(axis=1), nth.argmax(axis=1), missing)
    return found


def _check_searched(instruction: str, operand: str, value: NkiTensor, dst: NkiTensor) -> None:
    match_partitions(instruction, operand, value, dst)
    if not _WIDTH <= value.elements_per_partition <= _MOST:
        refuse("max8-size", instruction, operand, f"{value.elements_per_partition} elements per partition")
    if value.ndim > 3:
        refuse("max8-rank", instruction, operand, f"{value.ndim} dimensions")
    if dst.ndim != 2 or dst.shape[1] != _WIDTH:
        refuse("max8-output", instruction, "dst", f"shape {dst.shape}")
