"""The sizes of gpt-oss-20b per rank, and the largest sizes that the docstrings name."""

from __future__ import annotations

import pytest
import torch
from tp_harness.kernels import registry
from tp_harness.kernels.checks import accuracy
from tp_harness.kernels.checks.accuracy import BFLOAT16_ULPS, FLOAT32_LIMIT, AccuracyCase, measure

SECONDS = 10.0


@pytest.mark.parametrize(
    "case",
    [case for case in accuracy.full_size_cases(torch.float32, 8, 32) if case.use not in ("experts", "unembedding")],
    ids=lambda case: case.id,
)
def test_gpt_oss_20b_small_kernels(case: AccuracyCase) -> None:
    measured = measure(case)
    assert measured.error <= FLOAT32_LIMIT
    assert measured.cpu_seconds < SECONDS


@pytest.mark.slow
@pytest.mark.parametrize("case", accuracy.full_size_cases(torch.float32, 8, 32), ids=lambda case: case.id)
def test_gpt_oss_20b_in_time(case: AccuracyCase) -> None:
    measured = measure(case)
    assert measured.error <= FLOAT32_LIMIT
    assert measured.cpu_seconds < SECONDS


@pytest.mark.slow
@pytest.mark.parametrize("case", accuracy.full_size_cases(torch.float32, 1, 2), ids=lambda case: case.id)
def test_gpt_oss_20b_tp_1_and_2(case: AccuracyCase) -> None:
    assert measure(case).error <= FLOAT32_LIMIT


@pytest.mark.slow
@pytest.mark.parametrize("case", accuracy.full_size_cases(torch.bfloat16, 1, 2, 8, 32), ids=lambda case: case.id)
def test_gpt_oss_20b_bfloat16(case: AccuracyCase) -> None:
    assert measure(case).ulps <= BFLOAT16_ULPS


@pytest.mark.slow
@pytest.mark.parametrize("case", accuracy.limit_cases(), ids=lambda case: case.id)
def test_limits_fit_into_memory(case: AccuracyCase) -> None:
    assert measure(case).error <= FLOAT32_LIMIT


@pytest.mark.slow
@pytest.mark.parametrize("name", registry.names())
def test_recorded_peaks_are_what_is_measured(name: str) -> None:
    """The registry's peaks: the larger of a kernel's uses at gpt-oss-20b, tp 8, 128 tokens, float32."""
    usages = [
        measure(case).usage for case in accuracy.full_size_cases(torch.float32, 8, tokens=128) if case.kernel == name
    ]
    item = registry.spec(name)
    measured = [usage for usage in usages if usage is not None]
    assert item.sbuf_peak_bytes == max(usage.sbuf_peak_bytes for usage in measured)
    assert item.psum_peak_banks == max(usage.psum_peak_banks for usage in measured)
