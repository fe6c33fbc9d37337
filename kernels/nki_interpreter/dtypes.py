"""Element types and the conversions between them: through float32, ties to even, integers saturate.

The rounding of float32 to bfloat16 is not documented; round-to-nearest-even is assumed, as in AWS's host
tools. What an integer receives for NaN is not documented either; 0 is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np


@dataclass(frozen=True)
class DType:
    """One documented element type and the NumPy type that holds it."""

    name: str
    numpy: np.dtype[Any]
    kind: str  # "float" or "int"

    def __repr__(self) -> str:
        """Show the name the kernel author wrote."""
        return f"nl.{self.name}"

    @property
    def itemsize(self) -> int:
        """Bytes an element takes on chip."""
        return self.numpy.itemsize


float32 = DType("float32", np.dtype(np.float32), "float")
bfloat16 = DType("bfloat16", np.dtype(ml_dtypes.bfloat16), "float")
float16 = DType("float16", np.dtype(np.float16), "float")
int8 = DType("int8", np.dtype(np.int8), "int")
int16 = DType("int16", np.dtype(np.int16), "int")
int32 = DType("int32", np.dtype(np.int32), "int")
uint8 = DType("uint8", np.dtype(np.uint8), "int")
uint16 = DType("uint16", np.dtype(np.uint16), "int")
uint32 = DType("uint32", np.dtype(np.uint32), "int")

SUPPORTED = (float32, bfloat16, float16, int8, int16, int32, uint8, uint16, uint32)
NOT_COVERED = (
    "bool_",
    "tfloat32",
    "float8_e4m3",
    "float8_e4m3fn",
    "float8_e5m2",
    "float8_e5m2_x4",
    "float8_e4m3fn_x4",
    "float8_e8m0fnu",
    "float4_e2m1fn_x4",
)
_BY_NUMPY = {dtype.numpy: dtype for dtype in SUPPORTED}


def of_array(array: np.ndarray[Any, Any]) -> DType:
    """Return the element type of a host array of any shape; raise NotImplementedError for one that is not covered."""
    if array.dtype not in _BY_NUMPY:
        names = ", ".join(str(dtype) for dtype in _BY_NUMPY)
        raise NotImplementedError(f"arrays of {array.dtype} are not covered; pass one of {names}")
    return _BY_NUMPY[array.dtype]


def to_float32(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Read elements as the engines do: as float32."""
    return values if values.dtype == np.float32 else values.astype(np.float32)


def from_values(values: np.ndarray[Any, Any], dtype: DType) -> np.ndarray[Any, Any]:
    """Write values as `dtype`: floats round to nearest even, integers round to nearest even and saturate."""
    if values.dtype == dtype.numpy:
        return values
    if dtype.kind == "float":
        return values.astype(dtype.numpy)
    limits = np.iinfo(dtype.numpy)
    # float64 holds every 32-bit integer, so that saturation at 2^31 - 1 is exact.
    rounded = np.nan_to_num(np.rint(values.astype(np.float64)), nan=0.0, posinf=limits.max, neginf=limits.min)
    saturated: np.ndarray[Any, Any] = np.clip(rounded, limits.min, limits.max)
    return saturated.astype(dtype.numpy)


def unwritten(dtype: DType) -> float | int:
    """Return what `nki.simulate` documents for memory that nothing was written to: NaN, or 4 for integers."""
    return float("nan") if dtype.kind == "float" else 4
