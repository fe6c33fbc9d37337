"""The covered subset of nki.language: tensors, types, memories, tile sizes, views and operator tokens.

Of the layer above the instructions only load, store, zeros and the static loops are here, as public examples
need them; the kernels of this project use none of these, and the lint says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from tp_harness.kernels.nki_interpreter import session
from tp_harness.kernels.nki_interpreter.dtypes import NOT_COVERED as UNCOVERED_DTYPES
from tp_harness.kernels.nki_interpreter.dtypes import (
    DType,
    bfloat16,
    float16,
    float32,
    int8,
    int16,
    int32,
    uint8,
    uint16,
    uint32,
)
from tp_harness.kernels.nki_interpreter.isa.data_movement import dma_copy, memset
from tp_harness.kernels.nki_interpreter.memory import MemoryRegion, allocate
from tp_harness.kernels.nki_interpreter.operators import OPERATORS
from tp_harness.kernels.nki_interpreter.rules import violate
from tp_harness.kernels.nki_interpreter.targets import PARTITIONS, PSUM_BANK_BYTES, PSUM_BANKS
from tp_harness.kernels.nki_interpreter.tensors import DynamicSlice, NkiTensor

__all__ = [
    "DType",
    "MemoryRegion",
    "NkiTensor",
    "affine_range",
    "bfloat16",
    "ds",
    "float16",
    "float32",
    "hbm",
    "int8",
    "int16",
    "int32",
    "is_hbm",
    "is_on_chip",
    "is_psum",
    "is_sbuf",
    "load",
    "ndarray",
    "private_hbm",
    "psum",
    "sbuf",
    "sequential_range",
    "shared_hbm",
    "static_range",
    "store",
    "tile_size",
    "uint8",
    "uint16",
    "uint32",
    "zeros",
]

sbuf = MemoryRegion.sbuf
psum = MemoryRegion.psum
private_hbm = MemoryRegion.private_hbm
hbm = MemoryRegion.private_hbm
shared_hbm = MemoryRegion.shared_hbm

tile_size = SimpleNamespace(
    pmax=PARTITIONS,
    psum_fmax=PSUM_BANK_BYTES // 4,
    psum_bank_fmax=PSUM_BANK_BYTES // 4,
    psum_bank_fmax_bytes=PSUM_BANK_BYTES,
    psum_num_banks=PSUM_BANKS,
    gemm_stationary_fmax=128,
    gemm_moving_fmax=512,
)

# Documented in nki.language, but a layer above the instructions, or deprecated in favour of plain Python.
NOT_COVERED = (
    *("abs_max", "abs_min", "all", "arctan", "average", "broadcast_to", "bypass", "ceil"),
    *("cos", "device_print", "divide", "dropout", "dynamic_range", "empty_like", "erf"),
    *("erf_dx", "expand_dims", "floor", "fmod", "fori_loop", "full", "gather_flattened"),
    *("gelu", "gelu_apprx_sigmoid_dx", "gelu_apprx_tanh", "gelu_dx", "invert", "left_shift"),
    *("load_transpose2d", "logical_and", "logical_not", "logical_or", "logical_xor", "matmul"),
    *("max", "mean", "min", "mish", "mod", "negative", "no_reorder", "num_programs", "ones"),
    *("power", "prelu", "prod", "program_id", "program_ndim", "rand", "random_seed"),
    *("right_shift", "rms_norm", "shared_constant", "shared_identity_matrix", "sign"),
    *("silu_dx", "softmax", "softplus", "sum", "tan", "transpose", "trunc", "var", "where"),
    *("while_loop", "zeros_like"),
)


def ds(start: int, size: int) -> DynamicSlice:
    """Return the slice start:start+size."""
    return DynamicSlice(start, size)


def ndarray(
    shape: Sequence[int],
    dtype: DType,
    buffer: MemoryRegion = sbuf,
    name: str = "",
    address: tuple[int, int] | None = None,
) -> NkiTensor:
    """Allocate a tensor; nothing is written to it yet.

    Raises:
        NotImplementedError: an address is given.
        TypeError: dtype is no type of nl.
    """
    running = session.current()
    if running is None:
        violate("outside-kernel", instruction="nl.ndarray", operand="-", detail="no simulation is running")
    if address is not None:
        raise NotImplementedError("nl.ndarray: placing tiles by address is not covered")
    if not isinstance(dtype, DType):
        raise TypeError(f"nl.ndarray: dtype {dtype!r} is no nl type")
    return NkiTensor.whole(allocate(tuple(shape), dtype, buffer, name, running))


def zeros(shape: Sequence[int], dtype: DType, buffer: MemoryRegion = sbuf, name: str = "") -> NkiTensor:
    """Allocate a tile and set it to zero."""
    made = ndarray(shape, dtype, buffer, name)
    memset(dst=made, value=0)
    return made


def load(src: NkiTensor, dtype: DType | None = None) -> NkiTensor:
    """Copy an HBM tensor into a new SBUF tile."""
    made = ndarray(src.shape, dtype or src.dtype)
    dma_copy(dst=made, src=src)
    return made


def store(dst: NkiTensor, value: NkiTensor) -> None:
    """Copy an SBUF tile to HBM."""
    dma_copy(dst=dst, src=value)


# Deprecated in favour of range(...), but most public examples use them; all three unroll.
affine_range = sequential_range = static_range = range


def is_hbm(buffer: MemoryRegion) -> bool:
    """Tell whether `buffer` is in HBM."""
    return not buffer.on_chip


def is_on_chip(buffer: MemoryRegion) -> bool:
    """Tell whether `buffer` is SBUF or PSUM."""
    return buffer.on_chip


def is_psum(buffer: MemoryRegion) -> bool:
    """Tell whether `buffer` is PSUM."""
    return buffer is MemoryRegion.psum


def is_sbuf(buffer: MemoryRegion) -> bool:
    """Tell whether `buffer` is SBUF."""
    return buffer is MemoryRegion.sbuf


def __getattr__(name: str) -> Any:
    """Return operator tokens; answer for documented names that are not covered."""
    if name in OPERATORS:
        return OPERATORS[name]
    if name in UNCOVERED_DTYPES or name in NOT_COVERED:
        raise NotImplementedError(f"nl.{name} is documented but not covered by this interpreter")
    raise AttributeError(f"nki.language documents no {name!r}")
