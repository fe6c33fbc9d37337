"""Running kernels: targets, accounting, element types, nesting, threads."""

from __future__ import annotations

import threading

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tp_harness.kernels import nki_interpreter as nki
from tp_harness.kernels.checks.pieces import give, load, psum, random, run, sbuf
from tp_harness.kernels.nki_interpreter import NkiValidationError, dtypes, simulate
from tp_harness.kernels.nki_interpreter import isa as nisa
from tp_harness.kernels.nki_interpreter import language as nl


@nki.jit
def _double(x):
    tile = load(x)
    nisa.tensor_scalar(dst=tile, data=tile, op0=nl.multiply, operand0=2.0)
    return give(tile)


def test_a_kernel_runs_on_arrays_and_numbers() -> None:
    x = random(4, 4)
    np.testing.assert_array_equal(simulate(_double)(x), 2 * x)
    np.testing.assert_array_equal(simulate(_double)(x=x), 2 * x)


def test_a_kernel_calls_another_one_inside_a_run_only() -> None:
    @nki.jit
    def kernel(x):
        return _double(x)

    x = random(4, 4)
    np.testing.assert_array_equal(simulate(kernel)(x), 2 * x)
    with pytest.raises(NkiValidationError, match=r"no NeuronCore here; run simulate\(kernel\)"):
        _double(x)


def test_jit_takes_options_for_the_compiler() -> None:
    @nki.jit(platform_target="trn1")
    def kernel(x):
        """Say what it does."""
        return give(load(x))

    assert kernel.__doc__ == "Say what it does."
    np.testing.assert_array_equal(simulate(kernel)(np.ones((1, 1), np.float32)), [[1.0]])


def test_the_target_comes_from_the_argument_then_the_environment_then_gen2(monkeypatch) -> None:
    seen = []

    def kernel(x):
        seen.append(nisa.get_nc_version().name)
        return give(load(x))

    monkeypatch.delenv("NEURON_PLATFORM_TARGET_OVERRIDE", raising=False)
    run(kernel, random(1, 1))
    monkeypatch.setenv("NEURON_PLATFORM_TARGET_OVERRIDE", "trn2")
    run(kernel, random(1, 1))
    run(kernel, random(1, 1), target="trn1")
    assert seen == ["gen2", "gen3", "gen2"]


def test_accounting_counts_live_tiles_and_instructions() -> None:
    def kernel(x):
        tile = load(x)  # 64 bytes a partition
        for _ in range(3):
            moved = sbuf(8, 16)  # the old one is alive until the new one has its name
            nisa.tensor_copy(dst=moved, src=tile)
        del moved
        out = psum(16, 16)
        nisa.nc_matmul(dst=out, stationary=tile, moving=tile, accumulate=False)
        return give(out)

    usage = simulate(kernel).run(random(8, 16)).usage
    assert usage.sbuf_peak_bytes == 3 * 64
    assert usage.psum_peak_banks == 1
    assert usage.instructions == {"dma_copy": 2, "nc_matmul": 1, "tensor_copy": 4}
    assert usage.num_instructions == 7


def test_runs_in_threads_do_not_meet() -> None:
    results: dict[int, np.ndarray] = {}

    def work(rank: int) -> None:
        for _ in range(20):
            results[rank] = simulate(_double)(np.full((4, 4), rank, np.float32))

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {rank: float(value[0, 0]) for rank, value in results.items()} == {0: 0.0, 1: 2.0, 2: 4.0, 3: 6.0}


def test_a_failed_run_leaves_no_session_behind() -> None:
    with pytest.raises(ZeroDivisionError):
        run(lambda x: 1 // 0, random(1, 1))
    with pytest.raises(NkiValidationError, match="no simulation is running"):
        nl.ndarray((1, 1), dtype=nl.float32)


@settings(max_examples=100, deadline=None)
@given(st.floats(width=32, allow_nan=False))
def test_float32_to_bfloat16_rounds_as_torch_does(value: float) -> None:
    ours = dtypes.from_values(np.array([value], np.float32), dtypes.bfloat16)
    theirs = torch.tensor([value], dtype=torch.float32).to(torch.bfloat16)
    assert ours.astype(np.float32)[0] == theirs.float().numpy()[0]


@settings(max_examples=100, deadline=None)
@given(st.floats(width=32), st.sampled_from([dtypes.int8, dtypes.uint8, dtypes.int32, dtypes.uint32]))
def test_float32_to_integers_rounds_to_even_and_saturates(value: float, dtype) -> None:
    got = int(dtypes.from_values(np.array([value], np.float32), dtype)[0])
    limits = np.iinfo(dtype.numpy)
    if np.isnan(value):
        assert got == 0
    elif np.isinf(value):
        assert got == (limits.max if value > 0 else limits.min)
    else:
        assert got == min(max(round(value), limits.min), limits.max)


def test_arrays_of_other_types_are_refused_by_name() -> None:
    with pytest.raises(NotImplementedError, match=r"arrays of float64 are not covered.*bfloat16"):
        simulate(_double)(np.zeros((1, 1)))
    assert dtypes.of_array(np.zeros(1, ml_dtypes.bfloat16)) is dtypes.bfloat16


def test_options_that_are_not_covered_say_so() -> None:
    def address(x):
        nl.ndarray((1, 1), dtype=nl.float32, buffer=nl.sbuf, address=(0, 0))

    def hint(x):
        nisa.nc_matmul(dst=x, stationary=x, moving=x, is_transpose=True)

    def load_reduce(x):
        tile = load(x)
        nisa.activation(dst=tile, op=nl.copy, data=tile, reduce_op=nl.add, reduce_cmd=nisa.reduce_cmd.load_reduce)

    for kernel in (address, hint, load_reduce):
        with pytest.raises(NotImplementedError, match="not covered"):
            run(kernel, random(1, 1))
    with pytest.raises(ValueError, match="'raise' or 'nan'"):
        simulate(address, unwritten_reads="zero")
    with pytest.raises(TypeError, match="is no nl type"):
        run(lambda x: nl.ndarray((1, 1), dtype=np.float32), random(1, 1))


def test_strided_host_arrays_are_taken_as_they_look() -> None:
    x = random(4, 6)
    np.testing.assert_array_equal(simulate(_double)(x.T), 2 * x.T)
    np.testing.assert_array_equal(simulate(_double)(x[::2, ::3]), 2 * x[::2, ::3])
