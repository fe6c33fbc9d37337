"""iota and affine_select."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tp_harness.kernels.nki_interpreter import dtypes
from tp_harness.kernels.nki_interpreter.isa.operands import (
    SBUF,
    begin,
    destination,
    flat,
    match,
    operator,
    refuse,
    source,
    store,
)
from tp_harness.kernels.nki_interpreter.memory import Array
from tp_harness.kernels.nki_interpreter.operators import OPERATORS, Operator
from tp_harness.kernels.nki_interpreter.tensors import NkiTensor

Pattern = Sequence[Sequence[int]]
_INT32 = np.iinfo(np.int32)


def iota(
    dst: NkiTensor, pattern: Pattern, offset: int = 0, channel_multiplier: int = 0, name: str | None = None
) -> None:
    """Write offset + partition * channel_multiplier + the pattern's steps."""
    begin("iota")
    dst = destination("iota", "dst", dst, SBUF)
    store(dst, _affine("iota", dst, pattern, offset, channel_multiplier))


def affine_select(
    dst: NkiTensor,
    pattern: Pattern,
    channel_multiplier: int,
    on_true_tile: NkiTensor,
    on_false_value: float,
    cmp_op: Operator = OPERATORS["equal"],
    offset: int = 0,
    name: str | None = None,
) -> None:
    """Keep on_true_tile where (affine value <cmp_op> 0), put on_false_value elsewhere."""
    begin("affine_select")
    dst = destination("affine_select", "dst", dst, SBUF)
    tile = source("affine_select", "on_true_tile", on_true_tile, SBUF)
    match("affine_select", "on_true_tile", tile, dst)
    if isinstance(on_false_value, bool) or not isinstance(on_false_value, int | float):
        refuse("select-false-value", "affine_select", "on_false_value", f"is {on_false_value!r:.40}")
    compare = operator("affine_select", "cmp_op", cmp_op, "binary")
    if not compare.compares:
        refuse("compare-op", "affine_select", "cmp_op", f"is {compare!r}")
    assert compare.binary is not None
    predicate = compare.binary(_affine("affine_select", dst, pattern, offset, channel_multiplier), 0) != 0
    if tile.dtype is dst.dtype:
        store(dst, np.where(predicate, flat(tile), np.array(on_false_value, dtype=dst.dtype.numpy)))
    else:
        store(dst, np.where(predicate, dtypes.to_float32(flat(tile)), np.float32(on_false_value)))


def _affine(instruction: str, dst: NkiTensor, pattern: Pattern, offset: int, channel_multiplier: int) -> Array:
    """Evaluate the affine expression for every element of dst, as int32."""
    _check_pattern(instruction, dst, pattern)
    for operand, value in (("offset", offset), ("channel_multiplier", channel_multiplier)):
        if isinstance(value, bool) or not isinstance(value, int):
            refuse("affine-int32", instruction, operand, f"is {value!r:.40}")
    values = np.zeros(1, dtype=np.int64)
    for step, count in pattern:
        values = (values[:, None] + step * np.arange(count, dtype=np.int64)).reshape(-1)
    values = offset + channel_multiplier * np.arange(dst.shape[0], dtype=np.int64)[:, None] + values
    if values.min() < _INT32.min or values.max() > _INT32.max:
        refuse("affine-int32", instruction, "pattern", f"values {values.min()} to {values.max()}")
    return values.astype(np.int32)


def _check_pattern(instruction: str, dst: NkiTensor, pattern: Pattern) -> None:
    count = 1
    for pair in pattern:
        if len(pair) != 2 or not all(isinstance(item, int) for item in pair) or pair[1] < 1:
            refuse("affine-pattern", instruction, "pattern", f"{pair!r} is no [step, num]")
        count *= pair[1]
    if not 1 <= len(pattern) <= 4 or count != dst.elements_per_partition:
        detail = f"{pattern!r} produces {count}, dst has {dst.elements_per_partition} elements per partition"
        refuse("affine-pattern", instruction, "pattern", detail)
