"""What tests of the interpreter share: run a piece of kernel on arrays and get arrays back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from tp_harness.kernels.nki_interpreter import isa as nisa
from tp_harness.kernels.nki_interpreter import language as nl
from tp_harness.kernels.nki_interpreter import simulate
from tp_harness.kernels.nki_interpreter.memory import Array


def load(x: Any, dtype: Any = None) -> Any:
    """Copy an HBM tensor into a new SBUF tile."""
    tile = nl.ndarray(x.shape, dtype=dtype or x.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    return tile


def give(tile: Any, dtype: Any = None) -> Any:
    """Copy a tile into a new output, by way of SBUF if it is in PSUM."""
    if tile.buffer is nl.psum:
        copied = nl.ndarray(tile.shape, dtype=tile.dtype, buffer=nl.sbuf)
        nisa.tensor_copy(dst=copied, src=tile)
        tile = copied
    out = nl.ndarray(tile.shape, dtype=dtype or tile.dtype, buffer=nl.shared_hbm)
    nisa.dma_copy(dst=out, src=tile)
    return out


def sbuf(*shape: int, dtype: Any = nl.float32) -> Any:
    """Return a new SBUF tile of that shape."""
    return nl.ndarray(shape, dtype=dtype, buffer=nl.sbuf)


def psum(*shape: int, dtype: Any = nl.float32) -> Any:
    """Return a new PSUM tile of that shape."""
    return nl.ndarray(shape, dtype=dtype, buffer=nl.psum)


def run(kernel: Callable[..., Any], *arrays: Any, **options: Any) -> Any:
    """Run a kernel on arrays; options are those of simulate."""
    return simulate(kernel, **options)(*arrays)


def random(*shape: int, seed: int = 0) -> Array:
    """Return normal float32 numbers of that shape."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
