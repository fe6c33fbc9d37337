"""What the Vector Engine instructions do, against closed forms."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from tp_harness.kernels.checks.pieces import give, load, random, run, sbuf
from tp_harness.kernels.nki_interpreter import isa as nisa
from tp_harness.kernels.nki_interpreter import language as nl

BINARY = {
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "equal": np.equal,
    "not_equal": np.not_equal,
    "greater": np.greater,
    "greater_equal": np.greater_equal,
    "less": np.less,
    "less_equal": np.less_equal,
}


@pytest.mark.parametrize("name", BINARY)
def test_tensor_tensor(name: str) -> None:
    def kernel(a, b):
        out = sbuf(*a.shape)
        nisa.tensor_tensor(dst=out, data1=load(a), data2=load(b), op=getattr(nl, name))
        return give(out)

    a, b = random(128, 512), random(128, 512, seed=1)
    b[:, ::3] = a[:, ::3]
    np.testing.assert_array_equal(run(kernel, a, b), BINARY[name](a, b).astype(np.float32))


def test_tensor_tensor_computes_low_precision_in_float32_and_rounds_once() -> None:
    def kernel(a, b):
        out = sbuf(*a.shape, dtype=nl.bfloat16)
        nisa.tensor_tensor(dst=out, data1=load(a), data2=load(b), op=nl.add)
        return give(out)

    a, b = random(8, 64).astype(ml_dtypes.bfloat16), random(8, 64, seed=1)
    np.testing.assert_array_equal(run(kernel, a, b), (a.astype(np.float32) + b).astype(ml_dtypes.bfloat16))


def test_tensor_tensor_of_integers_is_exact_on_gpsimd_and_rounds_on_vector() -> None:
    def kernel(a, b, engine):
        out = sbuf(*a.shape, dtype=nl.int32)
        nisa.tensor_tensor(dst=out, data1=load(a), data2=load(b), op=nl.add, engine=engine)
        return give(out)

    a, b = np.array([[2**24, 7]], np.int32), np.array([[1, 8]], np.int32)
    np.testing.assert_array_equal(run(kernel, a, b, nisa.engine.unknown), [[2**24 + 1, 15]])
    np.testing.assert_array_equal(run(kernel, a, b, nisa.engine.gpsimd), [[2**24 + 1, 15]])
    np.testing.assert_array_equal(run(kernel, a, b, nisa.engine.vector), [[2**24, 15]])


@pytest.mark.parametrize("name", ["bitwise_and", "bitwise_or", "bitwise_xor"])
def test_bitvec_operators_take_bits_as_they_are(name: str) -> None:
    def kernel(a, b):
        out, scalar, reduced = (sbuf(4, n, dtype=nl.uint32) for n in (8, 8, 1))
        op = getattr(nl, name)
        nisa.tensor_tensor(dst=out, data1=load(a), data2=load(b), op=op)
        nisa.tensor_scalar(dst=scalar, data=load(a), op0=op, operand0=0xFF00)
        nisa.tensor_reduce(dst=reduced, data=load(a), op=op, axis=1)
        return give(out), give(scalar), give(reduced)

    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 2**32, (4, 8), dtype=np.uint32) for _ in range(2))
    out, scalar, reduced = run(kernel, a, b)
    ufunc = getattr(np, name)
    np.testing.assert_array_equal(out, ufunc(a, b))
    np.testing.assert_array_equal(scalar, ufunc(a, np.uint32(0xFF00)))
    np.testing.assert_array_equal(reduced[:, 0], ufunc.reduce(a, axis=1))


def test_tensor_scalar_with_a_number_both_ways_round() -> None:
    def kernel(x):
        left, right = sbuf(*x.shape), sbuf(*x.shape)
        nisa.tensor_scalar(dst=left, data=load(x), op0=nl.subtract, operand0=1.0)
        nisa.tensor_scalar(dst=right, data=load(x), op0=nl.subtract, operand0=1.0, reverse0=True)
        return give(left), give(right)

    x = random(128, 512)
    left, right = run(kernel, x)
    np.testing.assert_array_equal(left, x - np.float32(1))
    np.testing.assert_array_equal(right, np.float32(1) - x)


def test_tensor_scalar_with_a_vector_then_a_number() -> None:
    def kernel(x, f):
        out, reversed_ = sbuf(*x.shape), sbuf(*x.shape)
        steps = {"op0": nl.multiply, "operand0": load(f)}
        nisa.tensor_scalar(dst=out, data=load(x), op1=nl.add, operand1=2.5, **steps)
        nisa.tensor_scalar(dst=reversed_, data=load(x), op1=nl.subtract, operand1=2.5, reverse1=True, **steps)
        return give(out), give(reversed_)

    x, f = random(64, 1024), random(64, 1, seed=1)
    out, reversed_ = run(kernel, x, f)
    np.testing.assert_array_equal(out, x * f + np.float32(2.5))
    np.testing.assert_array_equal(reversed_, np.float32(2.5) - x * f)


def test_tensor_scalar_compares_and_selects() -> None:
    def kernel(x, f):
        out = sbuf(*x.shape)
        column = load(f)
        nisa.tensor_scalar(dst=out, data=load(x), op0=nl.equal, operand0=column, op1=nl.multiply, operand1=column)
        return give(out)

    x = np.tile(np.arange(8, dtype=np.float32), (4, 1))
    f = np.array([[0.0], [3.0], [7.0], [9.0]], np.float32)
    np.testing.assert_array_equal(run(kernel, x, f), np.where(x == f, f, 0.0))


def test_scalar_tensor_tensor() -> None:
    def kernel(x, f, y):
        out, reversed_, number = sbuf(*x.shape), sbuf(*x.shape), sbuf(*x.shape)
        steps = {"op0": nl.subtract, "operand0": load(f), "op1": nl.subtract, "operand1": load(y)}
        nisa.scalar_tensor_tensor(dst=out, data=load(x), **steps)
        nisa.scalar_tensor_tensor(dst=reversed_, data=load(x), reverse0=True, reverse1=True, **steps)
        nisa.scalar_tensor_tensor(dst=number, data=load(x), op0=nl.multiply, operand0=2.0, op1=nl.add, operand1=load(y))
        return give(out), give(reversed_), give(number)

    x, f, y = random(64, 96), random(64, 1, seed=1), random(64, 96, seed=2)
    out, reversed_, number = run(kernel, x, f, y)
    np.testing.assert_array_equal(out, (x - f) - y)
    np.testing.assert_array_equal(reversed_, y - (f - x))
    np.testing.assert_array_equal(number, x * np.float32(2) + y)


def test_tensor_reduce_sums_the_free_axis() -> None:
    def kernel(x):
        out = sbuf(128, 1)
        nisa.tensor_reduce(dst=out, op=nl.add, data=load(x), axis=[1])
        return give(out)

    x = random(128, 512)
    np.testing.assert_allclose(run(kernel, x), x.astype(np.float64).sum(1, keepdims=True), atol=512 * 2.0**-22)


@pytest.mark.parametrize(("axis", "shape"), [((1, 2, 3), (4, 1)), ((2, 3), (4, 2)), (3, (4, 2, 3)), (-1, (4, 6))])
@pytest.mark.parametrize(("name", "ufunc"), [("maximum", np.maximum), ("minimum", np.minimum)])
def test_tensor_reduce_of_the_last_axes(axis, shape, name, ufunc) -> None:
    def kernel(x):
        out = sbuf(*shape)
        nisa.tensor_reduce(dst=out, op=getattr(nl, name), data=load(x).reshape((4, 2, 3, 5)), axis=axis, keepdims=False)
        negated = sbuf(*shape)
        nisa.tensor_reduce(
            dst=negated, op=getattr(nl, name), data=load(x).reshape((4, 2, 3, 5)), axis=axis, negate=True
        )
        return give(out), give(negated)

    x = random(4, 30)
    out, negated = run(kernel, x)
    axes = axis if isinstance(axis, tuple) else (axis,)
    expected = ufunc.reduce(x.reshape(4, 2, 3, 5), axis=axes).reshape(shape)
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(negated, -expected)


def test_reciprocal() -> None:
    def kernel(x):
        out = sbuf(*x.shape)
        nisa.reciprocal(dst=out, data=load(x))
        return give(out)

    x = random(128, 512)
    np.testing.assert_array_equal(run(kernel, x), np.float32(1) / x)


def test_results_may_go_back_where_an_input_was() -> None:
    def kernel(x):
        tile = load(x)
        nisa.tensor_tensor(dst=tile[:, 0:4], data1=tile[:, 0:4], data2=tile[:, 4:8], op=nl.add)
        nisa.tensor_copy(dst=tile[:, 1:8], src=tile[:, 0:7])
        return give(tile)

    x = random(4, 8)
    expected = x.copy()
    expected[:, 0:4] += x[:, 4:8]
    expected[:, 1:8] = expected[:, 0:7].copy()
    np.testing.assert_array_equal(run(kernel, x), expected)
