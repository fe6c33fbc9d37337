"""Verdicts that a test asked `tp-harness verify` for: which of them fail it, and how its table shows them."""

from __future__ import annotations

from pathlib import Path

import pytest
from records import exact, gate, new_record, ratio, result

from tp_harness.pytest_plugin.core_block import CoreBlock
from tp_harness.pytest_plugin.report_properties import Properties
from tp_harness.pytest_plugin.result_collector import _Phases
from tp_harness.pytest_plugin.results import TestResult, results_of
from tp_harness.pytest_plugin.settings import Settings
from tp_harness.pytest_plugin.terminal_summary import closing
from tp_harness.pytest_plugin.tp_group import Finished, RankError, TpGroup
from tp_harness.results.result import Result, Status, to_json

SETTINGS = Settings(cores=tuple(range(8)), neuron=False, locks=Path("locks"), out=Path("out"), wait=1.0, fork=False)
VALUES = {"tp": 8, "first_core": 0, "acquired": 1.0, "released": 2.0}


def told(*verdicts: Result, status: str = "PASS") -> list[TestResult]:
    phases = _Phases(values=dict(VALUES), verdicts=[to_json(each) for each in verdicts], status=status, reason="why")
    return list(results_of("test_it", phases, begin=0.0))


@pytest.mark.parametrize(
    ("verdicts", "statuses"),
    [
        ((exact(), exact(Status.NOT_PROVED)), ["PROVED", "NOT PROVED", "FAILED"]),
        ((result(), result(status=Status.UNDECIDED)), ["PASS", "UNDECIDED", "FAILED"]),
        ((exact(), exact(Status.DIFFERENT)), ["PROVED", "DIFFERENT"]),
    ],
)
def test_a_test_that_fails_although_no_verdict_did_has_a_result_of_its_own(
    verdicts: tuple[Result, ...], statuses: list[str]
) -> None:
    assert [each.status.value for each in told(*verdicts, status="FAILED")] == statuses
    assert [each.status for each in told(*verdicts)] == [verdict.status for verdict in verdicts]


class Verifies(TpGroup):
    """A group whose `tp-harness verify` has found these results, whatever it was asked for."""

    def __init__(self, folder: Path, *found: Result) -> None:
        self.properties: list[tuple[str, object]] = []
        block = CoreBlock(first=0, count=8, settings=SETTINGS)
        super().__init__(block, fds=(), folder=folder, title="test_it", report=Properties(self.properties))
        self.found = found

    def _start(self, _name: str, _arguments: object, folder: Path, *_more: object) -> tuple[int, Finished]:
        record = new_record(folder, *self.found)
        return record.exit_code, Finished(output="", log=folder / "output.log", seconds=0.0)


def test_a_verdict_that_is_open_fails_no_test(tmp_path: Path) -> None:
    group = Verifies(tmp_path, exact(), exact(Status.NOT_PROVED), result(status=Status.UNDECIDED))
    assert [found["status"] for found in group.verify()] == ["PROVED", "NOT PROVED", "UNDECIDED"]
    _, verdicts = Properties(group.properties).read()
    assert [verdict["proof"] is None for verdict in verdicts] == [False, False, True]
    wrong = Verifies(tmp_path, exact(), exact(Status.NOT_PROVED), exact(Status.DIFFERENT, reason="residues differ"))
    with pytest.raises(RankError, match=r"mlp exact DIFFERENT: residues differ") as caught:
        wrong.verify()
    assert "NOT PROVED" not in str(caught.value)
    with pytest.raises(RankError, match="ended with code 4"):
        Verifies(tmp_path, exact(Status.NOT_PROVED)).verify()


def test_the_table_shows_bounds_errors_and_ratios() -> None:
    rows = (exact(), result(dtype="float64", gate=gate(8e-16)), result(gate=gate(2e-7)),
            result(dtype="bfloat16", gate=ratio(1.0)))  # fmt: skip
    lines = closing(told(*rows), SETTINGS, 1)
    shown = {line.split(":")[1].split()[3]: " ".join(line.split()[-2:]) for line in lines if ": mlp" in line}
    assert shown == {
        "exact": "PROVED 4e-06",
        "float64": "PASS 8.0e-16",
        "float32": "PASS 2.0e-07",
        "bfloat16": "PASS 1.00",
    }
    assert "3 PASS, 1 PROVED" in lines
