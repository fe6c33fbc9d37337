"""The terminal's table: a row per case, a column per degree, and every failure says what, where and which log."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from pathlib import Path

from records import gate, new_record, result
from rich.console import Console

from tp_harness.record import RunRecord
from tp_harness.result import (
    Status,
    Worst,
)
from tp_harness.table import print_summary, summary

MIXED = (
    result("attention", 1, gates=(gate(2.04e-7),)),
    result("attention", 8, gates=(gate(3.5e-7),)),
    result("attention", 8, dtype="bfloat16", gates=(gate(1.017, 1.2),)),
    result(
        "mlp",
        1,
        Status.MISMATCH,
        reason="rel_L2 of output.0 is 1.20e-02, limit 1.00e-05 (a reason)",
        gates=(gate(0.012), gate(0.5)),
        worst=Worst(tensor="output.0", index=(0, 3, 17), rank=5, actual=1.25, expected=-0.5),
    ),
    result("mlp", 8, Status.CRASH, reason="rank 3 of 8 exited with code 9", log_dir="runs/x/logs/tp8"),
    result("rope", 8, Status.VOID, reason="the control passed", gates=(gate(0.0),)),
)


def shown(record: RunRecord, width: int = 100) -> list[str]:
    """What a terminal of that width shows."""
    console = Console(record=True, width=width, file=io.StringIO())
    console.print(summary(record))
    return [line.rstrip() for line in console.export_text().splitlines()]


def test_the_table_has_a_row_per_case_and_a_column_per_degree(tmp_path: Path) -> None:
    lines = shown(new_record(tmp_path, *MIXED))
    cells = [[cell.strip() for cell in line.strip("│┃").replace("┃", "│").split("│")] for line in lines]
    assert cells[1] == ["component", "layer", "dtype", "tp 1", "tp 8"]
    assert cells[3:7] == [
        ["attention", "0", "float32", "2.0e-07", "3.5e-07"],
        ["attention", "0", "bfloat16", "-", "R 1.02"],
        ["mlp", "0", "float32", "MISMATCH 1.2e-02", "CRASH"],
        ["rope", "0", "float32", "-", "VOID 0.0e+00"],
    ]


def test_failures_say_what_where_and_which_log(tmp_path: Path) -> None:
    record = new_record(tmp_path, *MIXED)
    record.notes.append("tp 8: the ranks had to be started a second time")
    text = "\n".join(shown(record, width=200))
    assert text.endswith(
        f"""
float32: rel_L2 against the float64 oracle; bfloat16: R, error over the single-core error. The worst of all draws.
MISMATCH mlp layer 0 tp 1 float32: rel_L2 of output.0 is 1.20e-02, limit 1.00e-05 (a reason)
  worst element: output.0[0, 3, 17] on rank 5 is 1.25, expected -0.5 (seed 7)
  rank logs: logs/tp1
CRASH mlp layer 0 tp 8 float32: rank 3 of 8 exited with code 9
  rank logs: runs/x/logs/tp8
VOID rope layer 0 tp 8 float32: the control passed
  rank logs: logs/tp8
note: tp 8: the ranks had to be started a second time
3 PASS, 1 MISMATCH, 1 CRASH, 1 VOID (3 draws each, backend gloo: gloo cannot see all)
{record.path}"""
    )


def test_a_run_without_results_says_so(tmp_path: Path) -> None:
    record = new_record(tmp_path)
    assert shown(record, 200)[-2:] == [
        "nothing was run (0 draws each, backend gloo: gloo cannot see all)",
        str(record.path),
    ]


def test_one_draw_is_one_draw(tmp_path: Path) -> None:
    text = "\n".join(shown(new_record(tmp_path, replace(result("mlp", 1, Status.PASS), draws=1)), 200))
    assert "1 PASS (1 draw each, backend gloo: " in text


def test_nan_is_shown_and_a_users_brackets_are_no_markup(tmp_path: Path) -> None:
    odd = result("mine[bold][/x]", 1, Status.NONFINITE, reason="output.0[red] is nan", gates=(gate(math.nan),))
    text = "\n".join(shown(new_record(tmp_path, odd), 200))
    assert "mine[bold][/x]" in text.splitlines()[3]
    assert "NONFINITE nan" in text
    assert "NONFINITE mine[bold][/x] layer 0 tp 1 float32: output.0[red] is nan" in text


def test_piped_output_keeps_long_lines_whole(tmp_path: Path) -> None:
    record = new_record(tmp_path, replace(MIXED[4], reason="x " * 200 + "end"))
    console = Console(file=io.StringIO(), width=80)
    print_summary(record, console)
    assert "x " * 200 + "end" in console.file.getvalue()  # type: ignore[attr-defined]
