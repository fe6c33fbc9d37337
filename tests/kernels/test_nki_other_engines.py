"""What activation, iota, affine_select, max8 and nc_find_index8 do, against closed forms."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tp_harness.kernels.checks.pieces import give, load, random, run, sbuf
from tp_harness.kernels.nki_interpreter import isa as nisa
from tp_harness.kernels.nki_interpreter import language as nl


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


FUNCTIONS = {
    "copy": lambda x: x,
    "square": np.square,
    "relu": lambda x: np.maximum(x, 0),
    "abs": np.abs,
    "exp": np.exp,
    "tanh": np.tanh,
    "sigmoid": _sigmoid,
    "silu": lambda x: x * _sigmoid(x),
    "gelu_apprx_sigmoid": lambda x: x * _sigmoid(1.702 * x),
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "sqrt": np.sqrt,
    "log": np.log,
    "sin": np.sin,
    "reciprocal": lambda x: 1 / x,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_activation_functions(name: str) -> None:
    def kernel(x):
        out = sbuf(*x.shape)
        nisa.activation(dst=out, op=getattr(nl, name), data=load(x))
        return give(out)

    x = random(128, 64)
    x = np.abs(x) + np.float32(0.1) if name in ("rsqrt", "sqrt", "log") else x.clip(-3, 3)
    # A few float32 roundings; sigmoid's sum and exp count twice.
    np.testing.assert_allclose(run(kernel, x), FUNCTIONS[name](x.astype(np.float64)), rtol=1e-6, atol=1e-7)


def test_activation_scales_then_adds_the_bias_and_rounds_to_dst() -> None:
    def kernel(x, c):
        out = sbuf(*x.shape, dtype=nl.bfloat16)
        nisa.activation(dst=out, op=nl.square, data=load(x), bias=load(c), scale=2.0)
        return give(out)

    x, c = random(128, 512), random(128, 1, seed=1)
    expected = np.square(x * np.float32(2) + c).astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(run(kernel, x, c), expected)


def test_activation_with_a_scale_per_partition_and_a_bfloat16_bias() -> None:
    def kernel(x, s, c):
        out = sbuf(*x.shape)
        nisa.activation(dst=out, op=nl.copy, data=load(x), bias=load(c), scale=load(s))
        return give(out)

    x, s = random(16, 32), random(16, 1, seed=1)
    c = random(16, 1, seed=2).astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(run(kernel, x, s, c), x * s + c.astype(np.float32))


def test_activation_takes_a_number_as_bias_on_gen3() -> None:
    def kernel(x):
        out = sbuf(*x.shape)
        nisa.activation(dst=out, op=nl.copy, data=load(x), bias=1.5)
        return give(out)

    x = random(4, 4)
    np.testing.assert_array_equal(run(kernel, x, target="gen3"), x + np.float32(1.5))


def test_activation_sums_before_it_rounds_to_dst() -> None:
    def kernel(x):
        out, total = sbuf(*x.shape, dtype=nl.bfloat16), sbuf(x.shape[0], 1)
        nisa.activation(
            dst=out,
            op=nl.square,
            data=load(x),
            reduce_op=nl.add,
            reduce_res=total,
            reduce_cmd=nisa.reduce_cmd.reset_reduce,
        )
        return give(total)

    x = random(128, 256)
    np.testing.assert_allclose(run(kernel, x), np.square(x.astype(np.float64)).sum(1, keepdims=True), rtol=1e-6)


def test_reduce_registers_persist_over_instructions() -> None:
    def kernel(x):
        tile, out = load(x), sbuf(*x.shape)
        first, both, read = sbuf(4, 1), sbuf(4, 1), sbuf(4, 1)
        commands = nisa.reduce_cmd
        step = {"dst": out, "op": nl.copy, "data": tile, "reduce_op": nl.add}
        nisa.activation(reduce_cmd=commands.reset, **step)
        nisa.activation(reduce_cmd=commands.reduce, reduce_res=first, **step)
        nisa.activation(reduce_cmd=commands.reduce, reduce_res=both, **step)
        nisa.activation(reduce_cmd=commands.idle, reduce_res=read, **step)
        return give(first), give(both), give(read)

    x = np.arange(16, dtype=np.float32).reshape(4, 4)
    first, both, read = run(kernel, x)
    np.testing.assert_array_equal(first[:, 0], x.sum(1))
    np.testing.assert_array_equal(both[:, 0], 2 * x.sum(1))
    np.testing.assert_array_equal(read, both)


@pytest.mark.parametrize(
    ("shape", "pattern", "offset", "multiplier", "expected"),
    [
        ((1, 512), [[1, 512]], 0, 0, np.arange(512)[None]),
        ((128, 1), [[1, 1]], 0, 1, np.arange(128)[:, None]),
        ((1, 512), [[-1, 512]], 0, 0, -np.arange(512)[None]),
        ((128, 1), [[0, 1]], 5, 2, 5 + 2 * np.arange(128)[:, None]),
        ((128, 512), [[1, 512]], 0, 1, np.arange(128)[:, None] + np.arange(512)),
        ((2, 24), [[100, 2], [10, 3], [0, 2], [1, 2]], 7, 1000, None),
    ],
)
@pytest.mark.parametrize("dtype", [nl.int32, nl.float32], ids=str)
def test_iota(shape, pattern, offset, multiplier, expected, dtype) -> None:
    def kernel(x):
        out = sbuf(*shape, dtype=dtype)
        nisa.iota(dst=out, pattern=pattern, offset=offset, channel_multiplier=multiplier)
        return give(out)

    if expected is None:
        sizes = [num for _, num in pattern]
        grid = np.meshgrid(*(step * np.arange(num) for step, num in pattern), indexing="ij")
        expected = offset + multiplier * np.arange(2)[:, None] + sum(grid).reshape(1, np.prod(sizes))
    np.testing.assert_array_equal(run(kernel, random(1, 1)), expected.astype(dtype.numpy))


@pytest.mark.parametrize(
    ("cmp_op", "keep"),
    [("greater", np.greater), ("greater_equal", np.greater_equal), ("less", np.less), ("equal", np.equal)],
)
def test_affine_select_keeps_a_triangle(cmp_op, keep) -> None:
    smallest = float(np.finfo(np.float32).min)

    def kernel(x):
        out = sbuf(*x.shape)
        nisa.affine_select(
            dst=out,
            pattern=[[-1, 128]],
            channel_multiplier=1,
            on_true_tile=load(x),
            on_false_value=smallest,
            cmp_op=getattr(nl, cmp_op),
        )
        return give(out)

    x = random(128, 128)
    distance = np.arange(128)[:, None] - np.arange(128)[None, :]
    np.testing.assert_array_equal(run(kernel, x), np.where(keep(distance, 0), x, np.float32(smallest)))


def test_affine_select_with_an_offset_and_another_type() -> None:
    def kernel(x):
        out = sbuf(*x.shape, dtype=nl.bfloat16)
        nisa.affine_select(
            dst=out,
            pattern=[[1, 16]],
            channel_multiplier=-2,
            on_true_tile=load(x),
            on_false_value=-1.0e30,
            cmp_op=nl.less_equal,
            offset=-3,
        )
        return give(out)

    x = random(8, 16)
    keep = np.arange(16)[None] - 2 * np.arange(8)[:, None] - 3 <= 0
    expected = np.where(keep, x, np.float32(-1e30)).astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(run(kernel, x), expected)


def _search(x, index_dtype):
    tile, values = load(x), sbuf(x.shape[0], 8)
    nisa.max8(dst=values, src=tile)
    places = sbuf(x.shape[0], 8, dtype=index_dtype)
    nisa.nc_find_index8(dst=places, data=tile, vals=values)
    return give(values), give(places)


@pytest.mark.parametrize("index_dtype", [nl.uint32, nl.uint16], ids=str)
def test_max8_and_find_index8(index_dtype) -> None:
    x = random(32, 128)
    values, places = run(_search, x, index_dtype)
    np.testing.assert_array_equal(values, -np.sort(-x, axis=1)[:, :8])
    np.testing.assert_array_equal(np.take_along_axis(x, places.astype(np.int64), 1), values)


def test_equal_values_take_successive_places_in_rising_order() -> None:
    x = np.array([[1, 2, 3, 4, 8, 8, 8, 8, 8, 8, 8]], np.float32)
    values, places = run(_search, x, nl.uint32)
    np.testing.assert_array_equal(values, [[8, 8, 8, 8, 8, 8, 8, 4]])
    np.testing.assert_array_equal(places, [[4, 5, 6, 7, 8, 9, 10, 3]])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=8, max_size=20))
def test_search_is_a_stable_sort(row: list[int]) -> None:
    x = np.array([row], np.float32)
    _, places = run(_search, x, nl.uint32)
    np.testing.assert_array_equal(places[0], np.argsort(-x[0], kind="stable")[:8])


@pytest.mark.parametrize(("dtype", "missing"), [(nl.uint32, 0xFFFFFFFF), (nl.uint16, 0xFFFF)], ids=str)
def test_values_that_do_not_occur_give_all_ones(dtype, missing) -> None:
    def kernel(x, v):
        places = sbuf(1, 8, dtype=dtype)
        nisa.nc_find_index8(dst=places, data=load(x), vals=load(v))
        return give(places)

    x = np.arange(10, dtype=np.float32)[None]
    v = np.array([[9, 42, 0, 0, 5, -1, 3, 3]], np.float32)
    # 0 and 3 occur once: the second search for them finds nothing.
    np.testing.assert_array_equal(run(kernel, x, v), [[9, missing, 0, missing, 5, missing, 3, missing]])
