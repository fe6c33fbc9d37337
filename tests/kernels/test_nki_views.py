"""Views follow NumPy where NumPy's index is legal, know their place in memory, and never copy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tp_harness.kernels.checks.pieces import give, load, random, run, sbuf
from tp_harness.kernels.nki_interpreter import isa as nisa
from tp_harness.kernels.nki_interpreter import language as nl


@st.composite
def _slices(draw, size: int) -> slice:
    start = draw(st.integers(0, size - 1))
    stop = draw(st.integers(start + 1, size))
    return slice(start, stop, draw(st.integers(1, 3)))


@settings(max_examples=60, deadline=None)
@given(st.tuples(_slices(6), _slices(5), _slices(7)))
def test_slices_of_hbm_follow_numpy(key) -> None:
    x = random(6, 5, 7)

    def kernel(t):
        view = t[key]
        out = nl.ndarray(view.shape, dtype=view.dtype, buffer=nl.shared_hbm)
        nisa.dma_copy(dst=out, src=view)
        return out

    np.testing.assert_array_equal(run(kernel, x), x[key])


@settings(max_examples=60, deadline=None)
@given(st.tuples(_slices(5), _slices(7)))
def test_slices_of_free_axes_follow_numpy(key) -> None:
    x = random(4, 35)

    def kernel(t):
        view = load(t).reshape((4, 5, 7))[(slice(None), *key)]
        out = sbuf(*view.shape)
        nisa.tensor_copy(dst=out, src=view)
        return give(out)

    np.testing.assert_array_equal(run(kernel, x), x.reshape(4, 5, 7)[(slice(None), *key)])


@settings(max_examples=40, deadline=None)
@given(_slices(5), _slices(7))
def test_a_write_through_a_view_touches_only_the_view(first, second) -> None:
    def kernel(t):
        tile = sbuf(4, 5, 7)
        nisa.memset(dst=tile, value=0.0)
        nisa.memset(dst=tile[:, first, second], value=1.0)
        return give(tile)

    expected = np.zeros((4, 5, 7), np.float32)
    expected[:, first, second] = 1.0
    np.testing.assert_array_equal(run(kernel, random(1, 1)), expected)


def test_on_chip_views_stay_two_dimensional_and_hbm_views_do_not() -> None:
    seen = {}

    def kernel(t):
        tile = sbuf(64, 4, 8)
        seen["partition"] = tile[3].shape
        seen["all ints"] = tile[0, 0, 7].shape
        seen["last free"] = tile[:, 0, 7].shape
        seen["first free"] = tile[:, 0].shape
        seen["ellipsis"] = tile[0, ..., 0:2].shape
        seen["hbm row"] = t[1].shape
        seen["hbm element"] = t[1, 1].shape
        return give(load(t))

    run(kernel, random(4, 4))
    assert seen == {
        "partition": (1, 4, 8),
        "all ints": (1, 1),
        "last free": (64, 1),
        "first free": (64, 8),
        "ellipsis": (1, 4, 2),
        "hbm row": (4,),
        "hbm element": (1,),
    }


def test_attributes_of_views() -> None:
    def kernel(t):
        tile = nl.ndarray((128, 4, 8), dtype=nl.bfloat16, buffer=nl.sbuf, name="weights")
        view = tile[32:64, 1:3, ::2]
        assert (view.shape, view.strides, view.ndim, view.size) == ((32, 2, 4), (32, 8, 2), 3, 256)
        assert (view.offset, view.partition_start) == (32 * 32 + 8, 32)
        assert (view.name, view.dtype, view.buffer) == ("weights", nl.bfloat16, nl.sbuf)
        assert view[0:1, :, :].partition_start == 32
        assert tile.permute((0, 2, 1)).strides == (32, 1, 8)
        assert tile.expand_dim(1).shape == (128, 1, 4, 8)
        assert tile.expand_dim(1).squeeze_dim(1).shape == tile.shape
        assert tile.reshape_dim(2, (2, -1)).shape == (128, 4, 2, 4)
        assert tile.flatten_dims(1, 2).shape == (128, 32)
        assert tile.select(1, 2).shape == (128, 8)
        assert tile.slice(2, 0, 8, 4).shape == (128, 4, 2)
        assert nl.is_sbuf(tile.buffer) and nl.is_on_chip(tile.buffer)
        assert nl.is_hbm(t.buffer) and not nl.is_psum(t.buffer)
        assert repr(view) == "sbuf tile (32, 2, 4) of nl.bfloat16"
        return give(load(t))

    run(kernel, random(1, 1))


def test_broadcast_repeats_a_row_without_copying() -> None:
    def kernel(t):
        tile, out = load(t), sbuf(4, 24)
        nisa.tensor_copy(dst=out, src=tile.expand_dim(1).broadcast(1, 3))
        rows = sbuf(5, 8)
        nisa.dma_copy(dst=rows, src=t[0:1, :].broadcast(0, 5))
        return give(out), give(rows)

    x = random(4, 8)
    out, rows = run(kernel, x)
    np.testing.assert_array_equal(out, np.tile(x, (1, 3)))
    np.testing.assert_array_equal(rows, np.tile(x[:1], (5, 1)))


@pytest.mark.parametrize("name", ["ap", "view", "vector_select", "indirect", "rearrange"])
def test_views_that_are_not_covered_say_so(name: str) -> None:
    def kernel(t):
        return getattr(t, name)()

    with pytest.raises(NotImplementedError, match=f"NkiTensor.{name} is documented"):
        run(kernel, random(1, 1))


def test_misspelt_attributes_and_indices() -> None:
    with pytest.raises(AttributeError, match="no attribute 'shap'"):
        run(lambda t: t.shap, random(1, 1))
    with pytest.raises(TypeError, match="ints, slices"):
        run(lambda t: t[0.5], random(1, 1))
