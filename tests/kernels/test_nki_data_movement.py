"""What dma_copy, tensor_copy and memset do, against closed forms."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from tp_harness.kernels.checks.pieces import give, load, random, run, sbuf
from tp_harness.kernels.nki_interpreter import isa as nisa
from tp_harness.kernels.nki_interpreter import language as nl

BF16 = ml_dtypes.bfloat16


def test_dma_copy_between_hbm_tensors_of_more_than_128_rows() -> None:
    def kernel(x):
        out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
        nisa.dma_copy(dst=out, src=x)
        return out

    x = random(256, 1)
    np.testing.assert_array_equal(run(kernel, x), x)


@pytest.mark.parametrize(("mode", "target"), [("swdge", "gen2"), ("none", "gen2"), ("hwdge", "gen3")])
def test_dma_copy_is_the_same_in_every_descriptor_mode(mode: str, target: str) -> None:
    def kernel(x):
        tile = sbuf(64, 512)
        nisa.dma_copy(dst=tile, src=x, dge_mode=nisa.dge_mode[mode])
        return give(tile)

    x = random(64, 512)
    np.testing.assert_array_equal(run(kernel, x, target=target), x)


def test_dma_copy_keeps_row_major_order_between_shapes() -> None:
    def kernel(x):
        tile = sbuf(8, 3)
        nisa.dma_copy(dst=tile, src=x)
        return give(tile)

    x = random(24)
    np.testing.assert_array_equal(run(kernel, x), x.reshape(8, 3))


def test_dma_copy_strides_in_hbm() -> None:
    def kernel(x):
        tile = sbuf(4, 4)
        nisa.dma_copy(dst=tile, src=x[1:8:2, ::2])
        return give(tile)

    x = random(8, 8)
    np.testing.assert_array_equal(run(kernel, x), x[1:8:2, ::2])


def test_dma_copy_converts_through_float32() -> None:
    def kernel(x):
        return give(load(x, nl.bfloat16)), give(load(x, nl.int8)), give(load(x), nl.uint8)

    x = np.array([[0.5, 1.5, 2.5, -0.5, -1.5, 300.0, -300.0, 1.00390625]], np.float32)
    as_bf16, as_int8, as_uint8 = run(kernel, x)
    np.testing.assert_array_equal(as_bf16, x.astype(BF16))
    np.testing.assert_array_equal(as_int8, [[0, 2, 2, 0, -2, 127, -128, 1]])
    np.testing.assert_array_equal(as_uint8, [[0, 2, 2, 0, 0, 255, 0, 1]])


def test_dma_copy_of_integers_to_another_type_goes_through_float32_too() -> None:
    def kernel(x):
        return give(load(x), nl.uint32), give(load(x))

    # 2^24 + 1 is no float32.
    x = np.array([[2**24 + 1, 3]], np.int32)
    converted, same = run(kernel, x)
    np.testing.assert_array_equal(converted, [[2**24, 3]])
    np.testing.assert_array_equal(same, x)


def test_tensor_copy_of_equal_types_is_bit_accurate() -> None:
    def kernel(x):
        tile = load(x)
        copied = sbuf(*x.shape, dtype=x.dtype)
        nisa.tensor_copy(dst=copied, src=tile, engine=nisa.engine.vector)
        return give(copied)

    integers = np.array([[2**31 - 1, -(2**31), 2**24 + 1]], np.int32)
    np.testing.assert_array_equal(run(kernel, integers), integers)
    nan = np.array([[0x7FC12345]], np.uint32).view(np.float32)
    np.testing.assert_array_equal(run(kernel, nan).view(np.uint32), nan.view(np.uint32))


def test_tensor_copy_of_other_types_goes_through_float32() -> None:
    def kernel(x):
        copied = sbuf(*x.shape, dtype=nl.uint32)
        nisa.tensor_copy(dst=copied, src=load(x))
        return give(copied)

    # 2^24 + 1 is no float32: the copy rounds it to even.
    x = np.array([[2**24 + 1, 2**24 + 3, -5]], np.int32)
    np.testing.assert_array_equal(run(kernel, x), [[2**24, 2**24 + 4, 0]])


def test_tensor_copy_moves_between_quadrants() -> None:
    def kernel(x):
        tile, moved = load(x), sbuf(128, 4)
        nisa.memset(dst=moved, value=0.0)
        nisa.tensor_copy(dst=moved[96:128, :], src=tile[32:64, :])
        return give(moved)

    x = random(128, 4)
    expected = np.zeros_like(x)
    expected[96:] = x[32:64]
    np.testing.assert_array_equal(run(kernel, x), expected)


def test_tensor_copy_splits_even_and_odd_columns() -> None:
    def kernel(x):
        tile = load(x)
        even, odd = sbuf(8, 5), sbuf(8, 5)
        nisa.tensor_copy(dst=even, src=tile[:, 0:10:2])
        nisa.tensor_copy(dst=odd, src=tile[:, 1:10:2])
        return give(even), give(odd)

    x = random(8, 10)
    even, odd = run(kernel, x)
    np.testing.assert_array_equal(even, x[:, 0::2])
    np.testing.assert_array_equal(odd, x[:, 1::2])


def test_tensor_copy_transposes_free_axes() -> None:
    def kernel(x):
        tile, turned = load(x), sbuf(4, 6)
        view = tile.reshape((4, 2, 3)).permute((0, 2, 1))
        nisa.tensor_copy(dst=turned.reshape((4, 3, 2)), src=view)
        return give(turned)

    x = random(4, 6)
    np.testing.assert_array_equal(run(kernel, x), x.reshape(4, 2, 3).transpose(0, 2, 1).reshape(4, 6))


@pytest.mark.parametrize(
    ("dtype", "value"),
    [(nl.float32, 0.2), (nl.float32, 3), (nl.bfloat16, 0.2), (nl.int32, -7), (nl.uint8, 255), (nl.uint16, 9)],
    ids=str,
)
def test_memset_fills_with_a_constant(dtype, value) -> None:
    def kernel(x):
        tile = sbuf(128, 16, dtype=dtype)
        nisa.memset(dst=tile, value=value)
        return give(tile)

    np.testing.assert_array_equal(run(kernel, random(1, 1)), np.full((128, 16), value, dtype.numpy))


def test_unwritten_memory_is_nan_or_four_where_reads_are_let_through() -> None:
    def kernel(x):
        return give(sbuf(2, 2)), give(sbuf(2, 2, dtype=nl.int32)), give(sbuf(2, 2, dtype=nl.bfloat16))

    floats, integers, halves = run(kernel, random(1, 1), unwritten_reads="nan")
    assert np.isnan(floats).all() and np.isnan(halves.astype(np.float32)).all()
    np.testing.assert_array_equal(integers, np.full((2, 2), 4, np.int32))


def test_nan_of_unwritten_memory_spreads_through_arithmetic() -> None:
    def kernel(x):
        tile, doubled = sbuf(2, 4), sbuf(2, 4)
        nisa.memset(dst=tile[:, 0:2], value=1.0)
        nisa.tensor_scalar(dst=doubled, data=tile, op0=nl.multiply, operand0=2.0)
        return give(doubled)

    result = run(kernel, random(1, 1), unwritten_reads="nan")
    np.testing.assert_array_equal(np.isnan(result), [[False, False, True, True]] * 2)


def test_inputs_written_to_are_updated_in_place() -> None:
    def kernel(x):
        tile = load(x)
        nisa.tensor_scalar(dst=tile, data=tile, op0=nl.add, operand0=1.0)
        nisa.dma_copy(dst=x, src=tile)
        return give(tile)

    x = np.zeros((2, 2), np.float32)
    run(kernel, x)
    np.testing.assert_array_equal(x, np.ones((2, 2)))


def test_load_store_zeros_and_static_loops_are_what_instructions_do() -> None:
    def kernel(x):
        out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
        for i in nl.affine_range(2):
            tile, total = nl.load(x[nl.ds(i * 4, 4), :]), nl.zeros((4, 8), dtype=nl.float32)
            for _ in nl.static_range(3):
                nisa.tensor_tensor(dst=total, data1=total, data2=tile, op=nl.add)
            nl.store(out[nl.ds(i * 4, 4), :], value=total)
        return out

    x = random(8, 8)
    np.testing.assert_array_equal(run(kernel, x), x + x + x)
