"""The verdict: the first failure in a fixed order of checks decides."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from tp_harness.judge import verdict
from tp_harness.results.result import Check, Flip, Gate, Status

GOOD, BAD = (Gate(kind=m, value=v, limit=1.0, reason="why") for m, v in (("fine", 0.5), ("far", 3.0)))
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
    gate = Gate(kind="m", value=value, limit=limit, reason="")
    assert verdict.severity(gate) == expected
    assert gate.passed == (expected <= 1)
    assert verdict.nearest_gate((GOOD, gate)) is (gate if expected > 0.5 else GOOD)
    assert verdict.nearest_gate(()) is None
