"""The number of a cell is that of the worst output, beside its limit where that is another than one expects."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from records import gate, ratio, result
from report_pages import run_of

from tp_harness.report.charts import accuracy_charts
from tp_harness.report.headline import cell, legend, measure, worst_output
from tp_harness.results.result import Check, Flip, Gate, Result, Status

TOKEN = gate(1.2e-4, 4e-5, kind="worst token")
FAILED = Check(name="schedule", passed=False, detail="other calls")
WIDE = Flip(layer="mlp", token=3, margin=1.0, limit=0.1, chosen=(1,), expected=(2,))


def passed(*gates: Gate, dtype: str = "float32") -> Result:
    return result(dtype=dtype, gates=gates)


def failed(*gates: Gate, dtype: str = "float32") -> Result:
    return replace(passed(*gates, dtype=dtype), status=Status.MISMATCH)


@pytest.mark.parametrize(
    ("found", "shown"),
    [
        (passed(gate(2e-7)), ("", "2.0e-07")),
        (passed(gate(1e-8), gate(3e-6, tensor="output.1")), ("", "3.0e-06")),
        (passed(gate(2e-7), gate(9e-6, tensor="router_logits")), ("", "2.0e-07")),
        (passed(ratio(1.0), ratio(1.1, tensor="output.1"), dtype="bfloat16"), ("", "R 1.10")),
        (passed(ratio(2.51, 4.95), dtype="bfloat16"), ("", "R 2.51 of 4.95")),
        (failed(gate(3.8e-8), gate(0.5, tensor="output.1")), ("MISMATCH", "5.0e-01")),
        (failed(gate(2e-6), TOKEN), ("MISMATCH", "worst token 1.2e-04 over 4.0e-05")),
        (failed(gate(2e-7), gate(0.1, tensor="router_logits")), ("MISMATCH", "1.0e-01")),
        (failed(ratio(1.0), ratio(3.1, 1.7, "output.1"), dtype="bfloat16"), ("MISMATCH", "R 3.10 over 1.70")),
        (failed(ratio(107.7), dtype="bfloat16"), ("MISMATCH", "R 108")),
        (failed(gate(math.nan), gate(1.0)), ("MISMATCH", "nan")),
        (replace(failed(gate(3.8e-8)), checks=(FAILED,)), ("MISMATCH", "schedule")),
        (replace(failed(gate(0.5)), checks=(FAILED,)), ("MISMATCH", "schedule 5.0e-01")),
        (replace(failed(gate(3.8e-8)), flips=(WIDE,)), ("MISMATCH", "router")),
        (result(status=Status.VOID, gates=(gate(0.0),)), ("VOID", "")),
        (result(status=Status.VOID, gates=(replace(gate(2e-5), undecided=True),)), ("VOID", "2.0e-05")),
        (result(status=Status.CRASH), ("CRASH", "")),
    ],
)
def test_a_cell_shows_the_worst_number(found: Result, shown: tuple[str, str]) -> None:
    assert cell(found) == shown


def test_the_legend_explains_the_dtypes_that_were_run() -> None:
    exact, rounded = passed(gate(2e-7)), passed(ratio(1.0), dtype="bfloat16")
    both, alone, only = legend((exact, rounded)), legend((exact,)), legend((rounded,))
    assert "bfloat16" not in alone
    assert "float32" not in only
    assert "bfloat16: R, that error over" in both
    assert "bfloat16: R, the relative L2 error against the float64 oracle over" in only
    assert legend((result(status=Status.CRASH, gates=()),)) == ""


def test_zero_has_a_word_where_one_is_given() -> None:
    assert measure(passed(gate(0.0))) == "0.0e+00"
    assert measure(passed(gate(0.0)), "exact") == "exact"


def test_a_chart_draws_the_worst_output_and_its_limit() -> None:
    found = passed(gate(1e-8, 1e-6), gate(3e-6, 9e-6, tensor="output.1"), gate(3e-5, 4e-5, kind="worst token"))
    worst = worst_output(found)
    assert worst is not None
    assert worst.value == 3e-6
    [chart] = accuracy_charts(replace(run_of("clean"), results=[found]))
    assert [series.values for series in chart.series] == [(3e-6,)]
    assert [line.value for line in chart.lines] == [9e-6]
