"""The covered subset of nki.isa (15 instructions); other documented names say that they are not covered."""

from __future__ import annotations

from typing import Any

from tp_harness.kernels.nki_interpreter import session
from tp_harness.kernels.nki_interpreter.errors import NkiValidationError
from tp_harness.kernels.nki_interpreter.isa.constants import (
    dge_mode,
    engine,
    matmul_perf_mode,
    nc_version,
    oob_mode,
    reduce_cmd,
)
from tp_harness.kernels.nki_interpreter.isa.data_movement import dma_copy, memset, tensor_copy
from tp_harness.kernels.nki_interpreter.isa.documented import NOT_COVERED, SIGNATURES, uncovered
from tp_harness.kernels.nki_interpreter.isa.gpsimd_engine import affine_select, iota
from tp_harness.kernels.nki_interpreter.isa.scalar_engine import activation
from tp_harness.kernels.nki_interpreter.isa.search import max8, nc_find_index8
from tp_harness.kernels.nki_interpreter.isa.tensor_engine import nc_matmul, nc_transpose
from tp_harness.kernels.nki_interpreter.isa.vector_engine import (
    reciprocal,
    scalar_tensor_tensor,
    tensor_reduce,
    tensor_scalar,
    tensor_tensor,
)

__all__ = [
    "NOT_COVERED",
    "SIGNATURES",
    "NkiValidationError",
    "activation",
    "affine_select",
    "dge_mode",
    "dma_copy",
    "engine",
    "get_nc_version",
    "iota",
    "matmul_perf_mode",
    "max8",
    "memset",
    "nc_find_index8",
    "nc_matmul",
    "nc_transpose",
    "nc_version",
    "oob_mode",
    "reciprocal",
    "reduce_cmd",
    "scalar_tensor_tensor",
    "tensor_copy",
    "tensor_reduce",
    "tensor_scalar",
    "tensor_tensor",
]


def get_nc_version() -> nc_version:
    """Return the NeuronCore generation that the kernel runs for."""
    return nc_version[session.target_name()]


def __getattr__(name: str) -> Any:
    """Answer for documented functions that are not covered."""
    if name in NOT_COVERED:
        return uncovered(name)
    raise AttributeError(f"nki.isa documents no {name!r}")
