"""What 16 bits cannot decide, beside what float32 says of the same module."""

from __future__ import annotations

import math
from typing import Any

import pytest
from records import result

from tp_harness.judge.verdict import reconciled
from tp_harness.results.result import Check, Flip, Gate, Result, Status, exit_code


def in_bfloat16(ratio: float, **values: Any) -> Result:
    gate = Gate(kind="R", tensor="output.0", value=ratio, limit=1.2, reason="why")
    status = Status.PASS if gate.passed else Status.MISMATCH
    return result(dtype="bfloat16", status=status, gate=gate, gates=(gate,), **values)


RIGHT, WRONG = result(), result(status=Status.MISMATCH)
FAILED = {"checks": (Check(name="replicas", passed=False, detail="rank 5 differs"),)}
WIDE = {"flips": (Flip(layer="mlp", token=7, margin=2.0, limit=1.0, chosen=(0,), expected=(1,)),)}


@pytest.mark.parametrize(
    ("low", "exact", "planned", "status"),
    [
        (in_bfloat16(1.1), RIGHT, False, Status.PASS),
        (in_bfloat16(1.32), RIGHT, False, Status.UNDECIDED),
        (in_bfloat16(2.3), RIGHT, False, Status.UNDECIDED),
        (in_bfloat16(2.5), RIGHT, False, Status.MISMATCH),
        (in_bfloat16(math.nan), RIGHT, False, Status.MISMATCH),
        (in_bfloat16(1.32), RIGHT, True, Status.MISMATCH),
        (in_bfloat16(1.32), WRONG, False, Status.MISMATCH),
        (in_bfloat16(1.1), WRONG, False, Status.UNDECIDED),
        (in_bfloat16(1.1), WRONG, True, Status.UNDECIDED),
        (in_bfloat16(1.32, **FAILED), RIGHT, False, Status.MISMATCH),
        (in_bfloat16(1.32, **WIDE), RIGHT, False, Status.MISMATCH),
        (result(dtype="bfloat16", status=Status.CRASH), WRONG, False, Status.CRASH),
        (WRONG, RIGHT, False, Status.MISMATCH),
    ],
)
def test_sixteen_bits_beside_float32(low: Result, exact: Result, planned: bool, status: Status) -> None:
    assert reconciled(low, exact, planned=planned).status is status


def test_it_says_what_it_could_not_tell() -> None:
    missed = reconciled(in_bfloat16(1.11), WRONG, planned=False)
    assert missed.reason == (
        "R of output.0 is 1.11, limit 1.20: "
        "what float32 rejects is too small to be seen beside the roundings of bfloat16"
    )
    alarm = reconciled(in_bfloat16(1.32), RIGHT, planned=False)
    assert alarm.reason == (
        "R of output.0 is 1.32, limit 1.20: float32 passes, and roundings of bfloat16 that a single core does not make "
        "look like this"
    )


def test_undecided_is_neither_passed_nor_failed() -> None:
    assert exit_code([Status.PASS, Status.UNDECIDED]) == 0
    assert exit_code([Status.UNDECIDED]) == 4
    assert exit_code([Status.UNDECIDED, Status.MISMATCH, Status.PASS]) == 1
