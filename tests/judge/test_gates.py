"""Limits: each follows from its stated formula, passes what lies on it and fails what lies above."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from findings import NO_ERROR, call, errors

from tp_harness.judge import verdict
from tp_harness.results.result import Status


@pytest.mark.parametrize(
    ("baseline", "reduction", "limit"),
    [
        pytest.param(1e-6, 96, 3e-6, id="3-x-single-core"),
        pytest.param(0.0, 2880, math.sqrt(2880) * 2**-26, id="sqrt-K"),
        pytest.param(1e-7, 2880, math.sqrt(2880) * 2**-26, id="sqrt-K-over-baseline"),
        pytest.param(0.0, 1, 2**-26, id="lookup"),
        pytest.param(1e-4, 96, 1e-5, id="ceiling"),
        pytest.param(math.nan, 96, 1e-5, id="baseline-nan"),
    ],
)
def test_float32_limits(baseline: float, reduction: int, limit: float) -> None:
    whole, token = verdict.error_gates("float32", "y", NO_ERROR, errors(baseline), reduction=reduction)
    assert whole.limit == pytest.approx(limit, rel=1e-12)
    local = 4e-5 if math.isnan(baseline) else min(4e-5, max(3 * baseline, 4 * math.sqrt(reduction) * 2**-26))
    assert token.limit == pytest.approx(local, rel=1e-12)
    assert [gate.metric for gate in (whole, token)] == ["rel_L2 of y", "worst token of y"]


def test_the_ceiling_rises_with_layers_from_the_third_on() -> None:
    def limit(layers: int, baseline: float = 1e-3) -> float:
        return verdict.error_gates("float32", "y", NO_ERROR, errors(baseline), reduction=96, layers=layers)[0].limit

    assert limit(1) == limit(2) == 1e-5
    assert limit(24) == pytest.approx(math.sqrt(12) * 1e-5)
    clean, weakest = 7.2e-6, 1e-3  # of gpt-oss-20b with 24 layers; of all but the weakest faults in one layer
    assert clean < limit(24, clean) / 2 and limit(24, clean) < weakest / 40


@pytest.mark.parametrize("place", ["rel_l2", "token"])
def test_float32_gates_pass_at_their_limit_and_fail_above(place: str) -> None:
    position = ("rel_l2", "token").index(place)
    limit = verdict.error_gates("float32", "y", NO_ERROR, errors(2e-7), reduction=160)[position].limit
    for value, passed in ((limit, True), (math.nextafter(limit, 1), False)):
        gates = verdict.error_gates("float32", "y", replace(NO_ERROR, **{place: value}), errors(2e-7), reduction=160)
        assert [gate.passed for gate in gates] == [passed or i != position for i in range(2)]


@pytest.mark.parametrize("place", ["rel_l2", "token"])
def test_over_the_ceiling_a_run_as_far_off_as_its_reference_is_undecided(place: str) -> None:
    """And one that is farther off is a mismatch all the same."""
    position = ("rel_l2", "token").index(place)
    for value, undecided in ((9e-6, False), (2e-3, True), (2.9e-3, True), (3.1e-3, False), (math.nan, False)):
        gates = verdict.error_gates("float32", "y", replace(NO_ERROR, **{place: value}), errors(1e-3), reduction=160)
        assert [gate.undecided for gate in gates] == [undecided and i == position for i in range(2)]
        status, reason = verdict.decide((), gates, (), void=None)
        assert status is (Status.VOID if undecided else Status.PASS if value < 1e-5 else Status.MISMATCH)
        assert undecided == ("and so is what the single-core reference itself is off" in reason)


def test_float64_has_limits_of_its_own() -> None:
    """A single core's error, which is mostly 0, is no measure; no limit lies above what the weakest fault shows."""

    def limits(baseline: float, reduction: int) -> list[float]:
        gates = verdict.error_gates("float64", "y", NO_ERROR, errors(baseline), reduction=reduction)
        return [gate.limit for gate in gates]

    assert limits(0.0, 96) == pytest.approx([x * math.sqrt(96) * 2**-53 for x in (16, 64)], rel=1e-12)
    assert limits(1e-13, 96) == pytest.approx([3e-13] * 2)
    assert limits(1.0, 96) == pytest.approx([1e-12, 4e-12])
    clean, weakest, vocabulary = {96: 1.7e-15, 2880: 3.2e-15}, 2.3e-6, 201088
    assert all(10 * value < limits(0.0, reduction)[0] for reduction, value in clean.items())
    assert limits(0.0, vocabulary)[0] < 1e-12 < weakest / 1e6
    reason = verdict.error_gates("float64", "y", NO_ERROR, errors(0.0), reduction=160)[0].reason
    assert reason == "max(3 x single-core error 0.0e+00, 16 sqrt(160) 2^-53), at most 1e-12"


def test_a_router_flip_in_float64_is_rounding_below_float64_s_alone() -> None:
    assert verdict.flip_limit(0.0, 96, dtype="float64") == pytest.approx(64 * math.sqrt(96) * 2**-53)
    assert verdict.flip_limit(1e-3, 96, dtype="float64") == verdict.flip_limit(1e-3, 96) == pytest.approx(4e-3)
    assert verdict.flip_limit(0.0, 96, dtype="bfloat16") == verdict.flip_limit(0.0, 96)


@pytest.mark.parametrize("place", ["rel_l2", "token"])
def test_what_roundings_to_float32_give_is_told_from_what_they_do_not(place: str) -> None:
    least = math.sqrt(96) * 2**-24 * (1 if place == "rel_l2" else 4)
    for value, explained in ((0.99 * least, True), (1.01 * least, False), (math.nan, False), (0.0, True)):
        gates = verdict.error_gates("float64", "y", replace(NO_ERROR, **{place: value}), errors(0.0), reduction=96)
        assert verdict.as_float32_rounds(gates, 96) is explained


def test_a_float32_reason_names_its_numbers() -> None:
    reason = verdict.error_gates("float32", "y", NO_ERROR, errors(2e-7), reduction=160)[0].reason
    assert reason == "max(3 x single-core error 2.0e-07, 0.25 sqrt(160) 2^-24), at most 1e-05"


@pytest.mark.parametrize(
    ("actual", "baseline", "value", "passed"),
    [
        pytest.param(3.0e-3, 3e-3, 1.0, True, id="as-the-reference"),
        pytest.param(3.6e-3, 3e-3, 1.2, True, id="at-the-limit"),
        pytest.param(3.7e-3, 3e-3, 1.2333, False, id="alarm"),
        pytest.param(1.0e-3, 3e-3, 0.3333, True, id="more-precise"),
        pytest.param(0.0, 0.0, 0.0, True, id="exact-lookup"),
        pytest.param(1e-9, 0.0, math.inf, False, id="inexact-lookup"),
        pytest.param(math.nan, 3e-3, math.nan, False, id="nan"),
        pytest.param(math.nan, 0.0, math.inf, False, id="nan-lookup"),
        pytest.param(3e-3, math.nan, math.nan, False, id="baseline-nan"),
    ],
)
def test_bfloat16_ratio(actual: float, baseline: float, value: float, passed: bool) -> None:
    gate = verdict.bfloat16_gate("y", errors(actual), errors(baseline))
    assert gate.value == pytest.approx(value, rel=1e-3, nan_ok=True)
    assert (gate.metric, gate.limit, gate.passed) == ("R of y", 1.2, passed)


@pytest.mark.parametrize(("elements", "limit"), [(96, 1.6396), (1632, 1.2034), (2000, 1.2), (460_800, 1.2)])
def test_few_elements_widen_the_bfloat16_limit_and_say_so(elements: int, limit: float) -> None:
    base = replace(errors(1e-3), elements=elements)
    right, wrong = (
        verdict.bfloat16_gate("y", replace(base, rel_l2=1e-3 * limit * factor), base) for factor in (0.99, 1.01)
    )
    assert (right.passed, wrong.passed) == (True, False)
    assert right.limit == pytest.approx(limit, rel=1e-3)
    assert (f"only {elements} elements" in right.reason) == (limit > 1.2)


@pytest.mark.parametrize("kind", ["all_reduce", "reduce_scatter", "reduce"])
@pytest.mark.parametrize("planned", [True, False])
@pytest.mark.parametrize("ranks", [2, 8, 32])
def test_sums_in_16_bits_widen_the_bfloat16_limit_and_say_so(ranks: int, planned: bool, kind: str) -> None:
    sums = verdict.sums_of((call(), call(kind, ranks, "bfloat16")), planned=planned)
    gate = verdict.bfloat16_gate("y", errors(3e-3), errors(3e-3), sums)
    assert gate.limit == pytest.approx(1.2 * math.sqrt(1 + ranks / 2))
    assert f"sums over {ranks} ranks in 16 bits" in gate.reason


def test_without_a_plan_the_parts_of_a_sum_may_have_been_rounded() -> None:
    gate = verdict.bfloat16_gate("y", errors(3e-3), errors(3e-3), verdict.sums_of((call(),), planned=False))
    assert gate.limit == pytest.approx(1.2 * math.sqrt(2))
    assert "the parts that are summed may have been rounded" in gate.reason
    for calls, planned in (((call(),), True), ((), False), ((call(group_size=1), call("all_gather")), False)):
        assert verdict.sums_of(calls, planned=planned) is None
    assert "sum" not in verdict.bfloat16_gate("y", errors(3e-3), errors(3e-3)).reason


def test_16_bit_sums_are_found_in_the_recorded_calls() -> None:
    gathered = call("all_gather", 32, "bfloat16")
    assert verdict.reduced_in_16_bits(()) == verdict.reduced_in_16_bits((call(), gathered)) == 1
    calls = (call(), call(dtype="bfloat16"), call("reduce_scatter", 4, "float16"))
    assert verdict.reduced_in_16_bits(calls) == 8


def test_flip_limit_is_four_times_the_larger_error() -> None:
    """As a fraction of the scores at stake; sums in 16 bits before the router widen it as they widen all limits."""
    assert verdict.flip_limit(1e-3, 96) == pytest.approx(4e-3)
    assert verdict.flip_limit(0.0, 96) == pytest.approx(4 * math.sqrt(96) * 2**-24)
    assert verdict.flip_limit(1e-3, 96, verdict.Sums(3.0, "why")) == pytest.approx(8e-3)
