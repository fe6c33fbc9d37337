"""Distances: computed in float64, and no wrong token, block or element is diluted by what is right."""

from __future__ import annotations

import math

import pytest
import torch
from findings import NO_ERROR, errors

from tp_harness.judge import distance, verdict
from tp_harness.results.result import Status


def oracle() -> torch.Tensor:
    """(batch, seq, features) of order one, float64."""
    return torch.randn(2, 40, 96, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.mark.parametrize(
    ("dtype", "value"), [(torch.bfloat16, 1.001), (torch.float16, 1.0001), (torch.float32, 1 + 1e-9)], ids=str
)
def test_distance_subtracts_in_float64(dtype: torch.dtype, value: float) -> None:
    """In the tensor's own dtype the two would be equal and the error lost."""
    expected = torch.full((2, 3, 8), value, dtype=torch.float64)
    assert torch.equal(torch.ones(2, 3, 8, dtype=dtype), expected.to(dtype))
    found = distance.distance(torch.ones(2, 3, 8, dtype=dtype), expected)
    assert (found.rel_l2, found.token) == pytest.approx(((value - 1) / value,) * 2, rel=1e-9)


def test_distance_of_equal_tensors_is_zero() -> None:
    assert distance.distance(oracle(), oracle()) == NO_ERROR


def test_one_wrong_token_shows_in_the_token_maximum() -> None:
    actual = oracle()
    actual[1, 7] *= 1 + 1e-4
    found = distance.distance(actual, oracle())
    assert found.token_index == 47
    assert found.token == pytest.approx(1e-4, rel=0.3)
    assert found.rel_l2 < found.token / 8, "over all tokens the error is diluted"


def test_a_wrong_share_of_the_features_shows_over_all_of_them() -> None:
    actual, shares = oracle(), 8
    actual[..., 36:48] *= 1 + 1e-4
    assert distance.distance(actual, oracle()).rel_l2 == pytest.approx(1e-4 / math.sqrt(shares), rel=0.1)


def test_a_token_that_cancels_to_nothing_does_not_decide() -> None:
    """Its error is measured against the mean token, but an error of a mean token's size still shows."""
    expected = oracle()
    expected[0, 0] *= 1e-12
    actual = expected.clone()
    actual[0, 0] += 1e-9
    assert distance.distance(actual, expected).token < 1e-8
    actual[0, 0] = expected[0, 1]
    assert distance.distance(actual, expected).token > 0.5


def test_features_of_zeros_are_no_failure_but_an_error_in_them_is() -> None:
    """As padding gives them: nothing is divided by zero."""
    expected = oracle()
    expected[..., 84:] = 0
    assert distance.distance(expected, expected) == NO_ERROR
    assert distance.distance(expected.index_fill(-1, torch.tensor(90), 1.0), expected).token > 0.1


def test_the_largest_of_several_distances() -> None:
    found = distance.largest([errors(2e-7, 5e-7), errors(3e-7, 4e-7)])
    assert (found.rel_l2, found.token, found.elements) == (3e-7, 5e-7, NO_ERROR.elements)


def test_a_scalar_has_a_distance() -> None:
    assert distance.distance(torch.tensor(3.0), torch.tensor(2.0)).rel_l2 == 0.5


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize("side", ["actual", "oracle"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_nonfinite_element_passes_no_gate(bad: float, side: str, dtype: str) -> None:
    actual, expected = oracle(), oracle()
    (actual if side == "actual" else expected)[1, 3, 5] = bad
    found, clean = distance.distance(actual, expected), errors(1e-7)
    gates = (
        verdict.error_gates("float32", "y", found, clean, reduction=96)
        if dtype == "float32"
        else (verdict.bfloat16_gate("y", found, clean),)
    )
    assert not any(gate.passed for gate in gates)
    assert verdict.decide((), gates, (), void=None)[0] is Status.MISMATCH


def test_the_control_moves_every_element_and_is_far_away() -> None:
    rolled = distance.roll(oracle())
    assert torch.equal(rolled.flatten()[1:], oracle().flatten()[:-1])
    assert distance.distance(rolled, oracle()).rel_l2 > 1


@pytest.mark.parametrize(
    ("tp", "dim", "rank"), [(4, None, 0), (4, -1, 3), (4, 2, 3), (4, 1, 1), (80, 1, 34), (2, 0, 1)]
)
def test_the_worst_element_is_found_with_its_owner(tp: int, dim: int | None, rank: int) -> None:
    """80 ranks on 40 positions: the first of the two that hold position 17."""
    actual = oracle()
    actual[1, 17, 90] += 5
    worst = distance.worst_element("y", actual, oracle(), tp, dim=dim)
    assert (worst.tensor, worst.index, worst.rank) == ("y", (1, 17, 90), rank)
    assert worst.actual == pytest.approx(worst.expected + 5)
