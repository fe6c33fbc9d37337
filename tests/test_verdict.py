"""Distances, limits and their order: each is shown to pass what it must and to fail what it must."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from tp_harness import compare, verdict
from tp_harness.result import Check, Collective, Distance, Flip, Gate, Status

BLOCKS = 8
NO_ERROR = Distance(rel_l2=0.0, token=0.0, token_index=0, block=0.0, block_index=0, elements=2 * 40 * 96)


def oracle() -> torch.Tensor:
    """(batch, seq, features) of order one, float64."""
    return torch.randn(2, 40, 96, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def errors(rel_l2: float, token: float | None = None, block: float | None = None) -> Distance:
    """A distance of that size; token and block follow rel_l2 unless given."""
    return replace(
        NO_ERROR,
        rel_l2=rel_l2,
        token=rel_l2 if token is None else token,
        block=rel_l2 if block is None else block,
    )


# distance


@pytest.mark.parametrize(
    ("dtype", "value"), [(torch.bfloat16, 1.001), (torch.float16, 1.0001), (torch.float32, 1 + 1e-9)], ids=str
)
def test_distance_subtracts_in_float64(dtype: torch.dtype, value: float) -> None:
    """In the tensor's own dtype the two would be equal and the error lost."""
    expected = torch.full((2, 3, 8), value, dtype=torch.float64)
    assert torch.equal(torch.ones(2, 3, 8, dtype=dtype), expected.to(dtype))
    found = compare.distance(torch.ones(2, 3, 8, dtype=dtype), expected, 1)
    assert (found.rel_l2, found.token, found.block) == pytest.approx(((value - 1) / value,) * 3, rel=1e-9)


def test_distance_of_equal_tensors_is_zero() -> None:
    assert compare.distance(oracle(), oracle(), BLOCKS) == NO_ERROR


def test_one_wrong_token_shows_in_the_token_maximum() -> None:
    actual = oracle()
    actual[1, 7] *= 1 + 1e-4
    found = compare.distance(actual, oracle(), BLOCKS)
    assert found.token_index == 47
    assert found.token == pytest.approx(1e-4, rel=0.3)
    assert found.rel_l2 < found.token / 8, "over all tokens the error is diluted"


def test_one_wrong_block_shows_in_the_block_maximum() -> None:
    actual = oracle()
    actual[..., 36:48] *= 1 + 1e-4
    found = compare.distance(actual, oracle(), BLOCKS)
    assert (found.block_index, found.block) == (3, pytest.approx(1e-4))
    assert found.rel_l2 == pytest.approx(1e-4 / math.sqrt(BLOCKS), rel=0.1)


def test_features_that_do_not_divide_are_one_block() -> None:
    found = compare.distance(oracle() * (1 + 1e-4), oracle(), 7)
    assert (found.block_index, found.block) == (0, pytest.approx(found.rel_l2))


def test_a_token_that_cancels_to_nothing_does_not_decide() -> None:
    """Its error is measured against the mean token, but an error of a mean token's size still shows."""
    expected = oracle()
    expected[0, 0] *= 1e-12
    actual = expected.clone()
    actual[0, 0] += 1e-9
    assert compare.distance(actual, expected, 1).token < 1e-8
    actual[0, 0] = expected[0, 1]
    assert compare.distance(actual, expected, 1).token > 0.5


def test_a_block_of_zeros_is_no_failure_but_an_error_in_it_is() -> None:
    """As padding gives them: the mean block is the measure there, and nothing is divided by zero."""
    expected = oracle()
    expected[..., 84:] = 0
    assert compare.distance(expected, expected, BLOCKS) == NO_ERROR
    found = compare.distance(expected.index_fill(-1, torch.tensor(90), 1.0), expected, BLOCKS)
    assert (found.block_index, 0.1 < found.block < 1) == (7, True)


def test_the_largest_of_several_distances() -> None:
    found = compare.largest([errors(2e-7, 5e-7, 1e-7), errors(3e-7, 4e-7, 2e-7)])
    assert (found.rel_l2, found.token, found.block, found.elements) == (3e-7, 5e-7, 2e-7, NO_ERROR.elements)


def test_a_scalar_has_a_distance() -> None:
    assert compare.distance(torch.tensor(3.0), torch.tensor(2.0), 4).rel_l2 == 0.5


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize("side", ["actual", "oracle"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_nonfinite_element_passes_no_gate(bad: float, side: str, dtype: str) -> None:
    actual, expected = oracle(), oracle()
    (actual if side == "actual" else expected)[1, 3, 5] = bad
    found, clean = compare.distance(actual, expected, BLOCKS), errors(1e-7)
    gates = (
        verdict.float32_gates("y", found, clean, 96)
        if dtype == "float32"
        else (verdict.bfloat16_gate("y", found, clean),)
    )
    assert not any(gate.passed for gate in gates)
    assert verdict.decide((), gates, (), void=None)[0] is Status.MISMATCH


def test_the_control_moves_every_element_and_is_far_away() -> None:
    rolled = compare.roll(oracle())
    assert torch.equal(rolled.flatten()[1:], oracle().flatten()[:-1])
    assert compare.distance(rolled, oracle(), BLOCKS).rel_l2 > 1


@pytest.mark.parametrize(
    ("tp", "dim", "rank"), [(4, None, 0), (4, -1, 3), (4, 2, 3), (4, 1, 1), (80, 1, 34), (2, 0, 1)]
)
def test_the_worst_element_is_found_with_its_owner(tp: int, dim: int | None, rank: int) -> None:
    """80 ranks on 40 positions: the first of the two that hold position 17."""
    actual = oracle()
    actual[1, 17, 90] += 5
    worst = compare.worst_element("y", actual, oracle(), tp, dim=dim)
    assert (worst.tensor, worst.index, worst.rank) == ("y", (1, 17, 90), rank)
    assert worst.actual == pytest.approx(worst.expected + 5)


# limits


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
    whole, token, block = verdict.float32_gates("y", NO_ERROR, errors(baseline), reduction)
    assert whole.limit == pytest.approx(limit, rel=1e-12)
    local = 4e-5 if math.isnan(baseline) else min(4e-5, max(3 * baseline, 4 * math.sqrt(reduction) * 2**-26))
    assert token.limit == block.limit == pytest.approx(local, rel=1e-12)
    assert [gate.metric for gate in (whole, token, block)] == ["rel_L2 of y", "worst token of y", "worst block of y"]


def test_the_ceiling_rises_with_layers_from_the_third_on() -> None:
    def limit(layers: int, baseline: float = 1e-3) -> float:
        return verdict.float32_gates("y", NO_ERROR, errors(baseline), 96, layers)[0].limit

    assert limit(1) == limit(2) == 1e-5
    assert limit(24) == pytest.approx(math.sqrt(12) * 1e-5)
    clean, weakest = 7.2e-6, 1e-3  # of gpt-oss-20b with 24 layers; of all but the weakest faults in one layer
    assert clean < limit(24, clean) / 2 and limit(24, clean) < weakest / 40


@pytest.mark.parametrize("place", ["rel_l2", "token", "block"])
def test_float32_gates_pass_at_their_limit_and_fail_above(place: str) -> None:
    position = ("rel_l2", "token", "block").index(place)
    limit = verdict.float32_gates("y", NO_ERROR, errors(2e-7), 160)[position].limit
    for value, passed in ((limit, True), (math.nextafter(limit, 1), False)):
        gates = verdict.float32_gates("y", replace(NO_ERROR, **{place: value}), errors(2e-7), 160)
        assert [gate.passed for gate in gates] == [passed or i != position for i in range(3)]


@pytest.mark.parametrize("place", ["rel_l2", "token", "block"])
def test_over_the_ceiling_a_run_as_far_off_as_its_reference_is_undecided(place: str) -> None:
    """And one that is farther off is a mismatch all the same."""
    position = ("rel_l2", "token", "block").index(place)
    for value, undecided in ((9e-6, False), (2e-3, True), (2.9e-3, True), (3.1e-3, False), (math.nan, False)):
        gates = verdict.float32_gates("y", replace(NO_ERROR, **{place: value}), errors(1e-3), 160)
        assert [gate.undecided for gate in gates] == [undecided and i == position for i in range(3)]
        status, reason = verdict.decide((), gates, (), void=None)
        assert status is (Status.VOID if undecided else Status.PASS if value < 1e-5 else Status.MISMATCH)
        assert undecided == ("and so is what the single-core reference itself is off" in reason)


def test_a_float32_reason_names_its_numbers() -> None:
    reason = verdict.float32_gates("y", NO_ERROR, errors(2e-7), 160)[0].reason
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


@pytest.mark.parametrize("planned", [True, False])
@pytest.mark.parametrize("ranks", [2, 8, 32])
def test_sums_in_16_bits_widen_the_bfloat16_limit_and_say_so(ranks: int, planned: bool) -> None:
    sums = verdict.sums_of((call(), call("reduce_scatter", ranks, "bfloat16")), planned=planned)
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


def call(kind: str = "all_reduce", group_size: int = 8, dtype: str = "float32", length: int = 96) -> Collective:
    return Collective(kind=kind, group_size=group_size, shape=(80, length), dtype=dtype, bytes=80 * length * 4)


def test_16_bit_sums_are_found_in_the_recorded_calls() -> None:
    gathered = call("all_gather", 32, "bfloat16")
    assert verdict.reduced_in_16_bits(()) == verdict.reduced_in_16_bits((call(), gathered)) == 1
    calls = (call(), call(dtype="bfloat16"), call("reduce_scatter", 4, "float16"))
    assert verdict.reduced_in_16_bits(calls) == 8


def test_flip_limit_is_four_times_the_larger_error() -> None:
    assert verdict.flip_limit(1e-3, 10.0, 96) == pytest.approx(4e-3)
    assert verdict.flip_limit(0.0, 10.0, 96) == pytest.approx(4 * math.sqrt(96) * 2**-24 * 10)


# schedule

PLAN = (call(), call(length=64), call("all_gather", dtype="bfloat16"))


@pytest.mark.parametrize("planned", [PLAN, None], ids=["planned", "no-plan"])
@pytest.mark.parametrize(
    ("odd", "text"),
    [
        pytest.param((PLAN[1], PLAN[0], PLAN[2]), "call 0 is all_reduce [80, 64]", id="swapped"),
        pytest.param(PLAN[:2], "2 collectives instead of 3", id="missing"),
        pytest.param((*PLAN, call()), "4 collectives instead of 3", id="extra"),
        pytest.param((call(dtype="bfloat16"), *PLAN[1:]), "all_reduce [80, 96] bfloat16", id="dtype"),
        pytest.param((call(group_size=4), *PLAN[1:]), "over 4 ranks instead of", id="group"),
        pytest.param((call("reduce_scatter"), *PLAN[1:]), "reduce_scatter [80, 96]", id="kind"),
    ],
)
def test_schedule(odd: tuple[Collective, ...], text: str, planned: tuple[Collective, ...] | None) -> None:
    everywhere = verdict.schedule_check(PLAN, dict.fromkeys(range(4), odd))
    assert not everywhere.passed
    assert everywhere.detail.startswith("recorded against planned: ")
    assert text in everywhere.detail
    one_rank = verdict.schedule_check(planned, {0: PLAN, 1: PLAN, 2: odd, 3: PLAN})
    assert not one_rank.passed
    assert one_rank.detail.startswith("rank 2 against rank 0: ")
    assert text in one_rank.detail
    assert verdict.schedule_check(None, dict.fromkeys(range(4), odd)).passed, "without a plan, agreement is all"
    clean = verdict.schedule_check(planned, dict.fromkeys(range(4), PLAN))
    assert (clean.name, clean.passed) == ("schedule", True)
    assert clean.detail == "3 collectives, the same on all ranks" + (", as planned" if planned else "")


# decide

GOOD, BAD = (Gate(metric=m, value=v, limit=1.0, reason="why") for m, v in (("fine", 0.5), ("far", 3.0)))
CHECK, FAILED = (Check(name="replicas", passed=p, detail="rank 5 differs") for p in (True, False))
TIE, WIDE = (Flip(layer="mlp", token=7, margin=m, limit=1e-3, chosen=(0, 2), expected=(0, 1)) for m in (1e-4, 2e-3))


Given = tuple[tuple[Check, ...], tuple[Gate, ...], tuple[Flip, ...], str | None]


@pytest.mark.parametrize(
    ("given", "status", "reason"),
    [
        (((FAILED,), (BAD,), (WIDE,), "void"), Status.MISMATCH, "replicas: rank 5 differs"),
        (((CHECK, FAILED), (GOOD,), (), None), Status.MISMATCH, "replicas: rank 5 differs"),
        (((CHECK,), (GOOD, BAD), (WIDE,), "void"), Status.MISMATCH, "far is 3.00e+00, limit 1.00e+00 (why)"),
        (((CHECK,), (GOOD,), (TIE, WIDE), "void"), Status.MISMATCH, "router mlp: token 7 chose experts [0, 2]"),
        (((CHECK,), (GOOD,), (TIE,), "nothing was sharded"), Status.VOID, "nothing was sharded"),
        (((CHECK,), (GOOD,), (TIE,), None), Status.PASS, "fine is 5.00e-01, limit 1.00e+00"),
        (((), (), (), None), Status.PASS, ""),
    ],
    ids=["check-first", "check-last-of-two", "gate", "flip", "void", "pass", "nothing"],
)
def test_decide_in_order(given: Given, status: Status, reason: str) -> None:
    checks, gates, flips, void = given
    found = verdict.decide(checks, gates, flips, void=void)
    assert found[0] is status
    assert found[1].startswith(reason)
    assert bool(found[1]) == bool(reason)


@pytest.mark.parametrize("margin", [math.nan, math.inf], ids=str)
def test_a_flip_without_a_finite_margin_is_a_mismatch(margin: float) -> None:
    status, reason = verdict.decide((), (GOOD,), (replace(TIE, margin=margin),), void=None)
    assert status is Status.MISMATCH
    assert "where rounding explains 1.00e-03" in reason


@pytest.mark.parametrize(
    ("value", "limit", "expected"),
    [
        (0.5, 1.0, 0.5),
        (3.0, 1.0, 3.0),
        (0.0, 0.0, 0.0),
        (1e-9, 0.0, math.inf),
        (math.inf, 1.0, math.inf),
        (math.nan, 1.0, math.inf),
        (math.nan, 0.0, math.inf),
    ],
)
def test_severity_agrees_with_passing(value: float, limit: float, expected: float) -> None:
    gate = Gate(metric="m", value=value, limit=limit, reason="")
    assert verdict.severity(gate) == expected
    assert gate.passed == (expected <= 1)
    assert verdict.nearest_gate((GOOD, gate)) is (gate if expected > 0.5 else GOOD)
    assert verdict.nearest_gate(()) is None
