"""What nc_matmul and nc_transpose do, against closed forms."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tp_harness.kernels.checks.pieces import give, load, psum, random, run, sbuf
from tp_harness.kernels.nki_interpreter import isa as nisa


def _product(a, b):
    out = psum(a.shape[1], b.shape[1])
    nisa.nc_matmul(dst=out, stationary=load(a), moving=load(b), accumulate=False)
    return give(out)


def _close(actual: np.ndarray, a: np.ndarray, b: np.ndarray) -> None:
    exact = a.astype(np.float64).T @ b.astype(np.float64)
    size = np.abs(a.astype(np.float64)).T @ np.abs(b.astype(np.float64))
    # K products and sums in float32: at most K + 1 roundings of the sum of magnitudes.
    assert np.all(np.abs(actual - exact) <= (a.shape[0] + 1) * 2.0**-24 * size)


def test_matmul_contracts_the_partitions() -> None:
    a, b = random(128, 128), random(128, 512, seed=1)
    _close(run(_product, a, b), a, b)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 128), st.integers(1, 128), st.integers(1, 512))
def test_matmul_of_any_legal_size(k: int, m: int, n: int) -> None:
    a, b = random(k, m), random(k, n, seed=1)
    _close(run(_product, a, b), a, b)


def test_matmul_of_bfloat16_has_exact_products_in_float32() -> None:
    a, b = (random(128, 64, seed=seed).astype(ml_dtypes.bfloat16) for seed in (0, 1))
    _close(run(_product, a, b), a, b)
    one = np.array([[1.0078125]], ml_dtypes.bfloat16)
    assert run(_product, one, one)[0, 0] == np.float32(1.0078125) ** 2


@pytest.mark.parametrize("flags", [(False, True), (None, None)], ids=["explicit", "inferred"])
def test_matmul_accumulates_over_two_tiles_of_k(flags) -> None:
    def kernel(a, b):
        out = psum(128, 512)
        for i in range(2):
            rows = slice(i * 128, i * 128 + 128)
            nisa.nc_matmul(dst=out, stationary=load(a[rows, :]), moving=load(b[rows, :]), accumulate=flags[i])
        return give(out)

    a, b = random(256, 128), random(256, 512, seed=1)
    _close(run(kernel, a, b), a, b)


def test_matmul_overwrites_when_told_to() -> None:
    def kernel(a, b):
        out = psum(8, 8)
        for _ in range(3):
            nisa.nc_matmul(dst=out, stationary=load(a), moving=load(b), accumulate=False)
        return give(out)

    a, b = random(4, 8), random(4, 8, seed=1)
    _close(run(kernel, a, b), a, b)


def test_matmul_accumulates_into_a_part_of_what_was_written() -> None:
    def kernel(a, b):
        out = psum(4, 8)
        nisa.nc_matmul(dst=out, stationary=load(a), moving=load(b), accumulate=False)
        nisa.nc_matmul(dst=out[:, 2:5], stationary=load(a), moving=load(b)[:, 0:3], accumulate=True)
        return give(out)

    a, b = np.eye(4, dtype=np.float32), random(4, 8)
    expected = b.copy()
    expected[:, 2:5] += b[:, 0:3]
    np.testing.assert_array_equal(run(kernel, a, b), expected)


def test_matmul_in_tiling_mode_computes_the_same() -> None:
    def kernel(a, b):
        out = psum(64, 512)
        where = {"tile_position": (64, 64), "tile_size": (64, 64)}
        nisa.nc_matmul(dst=out, stationary=load(a), moving=load(b), accumulate=False, **where)
        return give(out)

    a, b = random(64, 64), random(64, 512, seed=1)
    _close(run(kernel, a, b), a, b)


def test_matmul_with_a_row_of_ones_copies_a_row_to_all_partitions_exactly() -> None:
    row = random(1, 512)
    np.testing.assert_array_equal(run(_product, np.ones((1, 128), np.float32), row), np.repeat(row, 128, axis=0))


def test_matmul_flattens_free_axes() -> None:
    def kernel(a, b):
        out = psum(6, 2, 5)
        left = load(a).reshape((4, 3, 2))
        nisa.nc_matmul(dst=out, stationary=left, moving=load(b).reshape((4, 2, 5)), accumulate=False)
        return give(out.reshape((6, 10)))

    a, b = random(4, 6), random(4, 10, seed=1)
    _close(run(kernel, a, b), a, b)


@pytest.mark.parametrize("shape", [(128, 64), (1, 128), (7, 5)])
def test_transpose_on_tensor_engine(shape) -> None:
    def kernel(x):
        out = psum(x.shape[1], x.shape[0], dtype=x.dtype)
        nisa.nc_transpose(dst=out, data=load(x), engine=nisa.engine.tensor)
        return give(out)

    x = random(*shape)
    np.testing.assert_array_equal(run(kernel, x), x.T)
    half = x.astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(run(kernel, half), half.T)


def test_transpose_on_vector_engine() -> None:
    def kernel(x):
        out = sbuf(x.shape[1], x.shape[0])
        nisa.nc_transpose(dst=out, data=load(x), engine=nisa.engine.vector)
        return give(out)

    x = random(32, 2)
    np.testing.assert_array_equal(run(kernel, x), x.T)


def test_transpose_chooses_an_engine_that_reaches_the_memories() -> None:
    def kernel(x):
        in_psum, in_sbuf = psum(4, 32), sbuf(32, 4)
        nisa.nc_transpose(dst=in_psum, data=load(x))
        nisa.nc_transpose(dst=in_sbuf, data=in_psum)
        return give(in_sbuf)

    x = random(32, 4)
    np.testing.assert_array_equal(run(kernel, x), x)


def test_transpose_keeps_nan_on_gen3() -> None:
    def kernel(x):
        out = psum(2, 2)
        nisa.nc_transpose(dst=out, data=load(x))
        return give(out)

    x = np.array([[np.nan, 1.0], [np.inf, 2.0]], np.float32)
    np.testing.assert_array_equal(run(kernel, x, target="gen3"), x.T)
