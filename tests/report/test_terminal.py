"""The terminal's table: a row per case, a column per degree, and every failure says what, where and which log."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from pathlib import Path

from records import gate, new_record, ratio, result, shown
from rich.console import Console

from tp_harness.report.headline import legend
from tp_harness.report.terminal import print_summary
from tp_harness.results.result import Control, Status, Worst

MIXED = (
    result("attention", 1, gates=(gate(2.04e-7),)),
    result("attention", 8, gates=(gate(3.5e-7),)),
    result("attention", 8, dtype="bfloat16", gates=(ratio(1.017),)),
    result(
        "mlp",
        1,
        Status.MISMATCH,
        reason="rel_L2 of output.0 is 1.20e-02, limit 1.00e-05 (a reason)",
        gates=(gate(0.012),),
        worst=Worst(tensor="output.0", index=(0, 3, 17), rank=5, actual=1.25, expected=-0.5),
    ),
    result("mlp", 8, Status.CRASH, reason="rank 3 of 8 exited with code 9", log_dir="runs/x/logs/tp8"),
    result("rope", 8, Status.VOID, reason="the control passed", gates=(gate(0.0),)),
)


def test_the_table_has_a_row_per_case_and_a_column_per_degree(tmp_path: Path) -> None:
    lines = shown(new_record(tmp_path, *MIXED))
    cells = [[cell.strip() for cell in line.strip("│┃").replace("┃", "│").split("│")] for line in lines]
    assert cells[1] == ["component", "layer", "dtype", "tp 1", "tp 8"]
    assert cells[3:7] == [
        ["attention", "0", "float32", "2.0e-07", "3.5e-07"],
        ["attention", "0", "bfloat16", "-", "R 1.02"],
        ["mlp", "0", "float32", "MISMATCH 1.2e-02", "CRASH"],
        ["rope", "0", "float32", "-", "VOID"],
    ]


def test_failures_say_what_where_and_which_log(tmp_path: Path) -> None:
    record = new_record(tmp_path, *MIXED)
    record.notes.append("tp 8: the ranks had to be started a second time")
    (tmp_path / record.run_id / "logs/tp8").mkdir(parents=True)
    (tmp_path / record.run_id / "logs/tp8/rank3.log").write_text("killed\n")
    text = "\n".join(shown(record, width=250))
    assert text.endswith(
        f"""
{legend(record.results)}
CRASH mlp: the ranks crashed at tp 8 in float32: rank 3 of 8 exited with code 9
  rank logs: runs/x/logs/tp8
MISMATCH mlp: output.0 is wrong at tp 1 in float32
  tp 1 float32: rel_L2 of output.0 is 1.20e-02, limit 1.00e-05; worst element: output.0[0, 3, 17] on rank 5 is 1.25, expected -0.5 (seed 7)
VOID rope: this proves nothing at tp 8 in float32: the control passed
  rank logs: logs/tp8
note: tp 8: the ranks had to be started a second time
3 PASS, 1 MISMATCH, 1 CRASH, 1 VOID (each with 3 draws of weights and inputs; backend gloo: gloo cannot see all)
{record.path}"""  # noqa: E501
    )


def test_controls_are_told_apart_by_what_became_of_them(tmp_path: Path) -> None:
    record = new_record(tmp_path)
    fields = {"component": "mlp", "layer": 0, "dtype": "float32", "seed": 0, "reason": ""}
    tried = (("rolled", 1, True), ("rolled", 2, True), ("dropped", 8, True))
    record.controls = [Control(fault=fault, tp=tp, rejected=rejected, **fields) for fault, tp, rejected in tried]
    rejected = "controls, mistakes put in on purpose, rejected as they must be: rolled at tp 1, 2; dropped at tp 8"
    assert [line for line in shown(record, 200) if line.startswith("controls")] == [rejected]
    record.controls[1] = replace(record.controls[1], rejected=False)
    assert [line for line in shown(record, 200) if line.startswith("controls")] == [
        "controls, mistakes put in on purpose, rejected as they must be: rolled at tp 1; dropped at tp 8",
        "controls NOT rejected, so that their degree proves nothing: rolled at tp 2",
    ]


def test_a_run_without_results_says_so(tmp_path: Path) -> None:
    record = new_record(tmp_path)
    assert shown(record, 200)[-2:] == [
        "nothing was run (each with 0 draws of weights and inputs; backend gloo: gloo cannot see all)",
        str(record.path),
    ]


def test_one_draw_is_one_draw(tmp_path: Path) -> None:
    text = "\n".join(shown(new_record(tmp_path, replace(result("mlp", 1, Status.PASS), draws=1)), 200))
    assert "1 PASS (each with 1 draw of weights and inputs; backend gloo: " in text


def test_nan_is_shown_and_a_users_brackets_are_no_markup(tmp_path: Path) -> None:
    odd = result("mine[bold][/x]", 1, Status.NONFINITE, reason="output.0[red] is nan", gates=(gate(math.nan),))
    text = "\n".join(shown(new_record(tmp_path, odd), 200))
    assert "mine[bold][/x]" in text.splitlines()[3]
    assert "NONFINITE nan" in text
    assert "NONFINITE mine[bold][/x]: an output is not finite at tp 1 in float32: output.0[red] is nan" in text


def test_piped_output_keeps_long_lines_whole(tmp_path: Path) -> None:
    record = new_record(tmp_path, replace(MIXED[4], reason="x " * 200 + "end"))
    console = Console(file=io.StringIO(), width=80)
    print_summary(record, console)
    assert "x " * 200 + "end" in console.file.getvalue()  # type: ignore[attr-defined]
