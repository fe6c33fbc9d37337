"""run.json and the terminal's table: whole at any time, and saying what was found."""

from __future__ import annotations

import io
import json
import math
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tp_harness import record as record_module
from tp_harness.errors import UsageError
from tp_harness.record import RunRecord, command_line, open_record
from tp_harness.result import (
    Check,
    Collective,
    Divergence,
    Flip,
    Gate,
    RankRecord,
    Result,
    Status,
    Worst,
    exit_code,
    to_json,
)
from tp_harness.table import print_summary, summary

OPTIONS = {"model": {"hidden_size": 96}, "degrees": (1, 8), "out": "artifacts"}


def gate(value: float, limit: float = 1e-5) -> Gate:
    return Gate(metric="rel_L2 of output.0", value=value, limit=limit, reason="a reason")


def result(component: str = "mlp", tp: int = 8, status: Status = Status.PASS, **values: Any) -> Result:
    fields: dict[str, Any] = {"backend": "gloo", "dtype": "float32", "layer": 0, "draws": 3, "seed": 7, "reason": ""}
    return Result(component=component, tp=tp, status=status, **(fields | {"log_dir": f"logs/tp{tp}"} | values))


def new_record(folder: Path, *results: Result) -> RunRecord:
    record = open_record(
        folder, command="tp-harness verify", options=OPTIONS, backend="gloo", blind_spots="gloo cannot see all"
    )
    for each in results:
        record.add(each)
    return record


def stored(record: RunRecord) -> dict[str, Any]:
    """run.json, read as strictly as JSON is defined (Python's reader would take NaN)."""
    text = record.path.read_text(encoding="utf-8")
    values: dict[str, Any] = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    return values


def test_a_run_is_on_disk_before_any_result(tmp_path: Path) -> None:
    record = new_record(tmp_path / "new" / "folder")
    values = stored(record)
    assert record.path == record.folder / "run.json"
    assert (values["schema"], values["run_id"]) == (1, record.folder.name)
    assert (values["finished"], values["exit_code"], values["results"]) == (False, None, [])
    assert values["options"] == json.loads(json.dumps(OPTIONS))
    assert {"tp_harness", "python", "platform", "cpus", "packages"} <= set(values["environment"])
    assert values["environment"]["packages"]["torch"]
    assert new_record(tmp_path / "new" / "folder").folder != record.folder


def test_results_are_on_disk_as_soon_as_they_are_added(tmp_path: Path) -> None:
    record = new_record(tmp_path)
    for count, status in enumerate((Status.PASS, Status.MISMATCH), start=1):
        record.add(result(status=status, gates=(gate(1e-7),)))
        assert [r["status"] for r in stored(record)["results"]] == ["PASS", "MISMATCH"][:count]
    record.notes.append("a note")
    record.finished = True
    record.save()
    values = stored(record)
    assert (values["finished"], values["exit_code"], values["notes"]) == (True, 1, ["a note"])
    assert values["results"][0]["gates"] == [to_json(gate(1e-7))]
    assert [path.name for path in record.folder.iterdir()] == ["run.json"]


def test_a_reader_sees_whole_files_only(tmp_path: Path) -> None:
    record, seen, stop = new_record(tmp_path), [0], threading.Event()
    broken: list[Exception] = []

    def read() -> None:
        while not stop.is_set():
            try:
                seen.append(len(json.loads(record.path.read_text())["results"]))
            except ValueError as error:
                broken.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for tp in range(1, 101):
        record.add(result(tp=tp, reason="x" * 2000))
    stop.set()
    reader.join()
    assert not broken
    assert seen == sorted(seen)  # and never fewer results than before


def fill_disk_half_way(self: Path, text: str, encoding: str) -> int:
    """Path.write_text on a disk that is full after half the text."""
    with self.open("w", encoding=encoding) as file:
        file.write(text[: len(text) // 2])
    raise OSError(28, os.strerror(28))


def remove_folder(record: RunRecord) -> None:
    record.path.unlink()
    record.folder.rmdir()


def test_a_full_disk_leaves_the_earlier_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = new_record(tmp_path, result())
    before = record.path.read_bytes()
    monkeypatch.setattr(Path, "write_text", fill_disk_half_way)
    with pytest.raises(UsageError) as caught:
        record.add(result(tp=2))
    assert str(caught.value) == (
        f"cannot write {record.path}: No space left on device; 2 results were found; "
        f"go on later with --resume {record.folder}."
    )
    assert record.path.read_bytes() == before
    assert [path.name for path in record.folder.iterdir()] == ["run.json"]


def test_a_folder_that_went_away_is_named(tmp_path: Path) -> None:
    record = new_record(tmp_path)
    remove_folder(record)
    with pytest.raises(UsageError, match=rf"^cannot write {record.path}: No such file or directory; 0 results"):
        record.save()


@pytest.mark.parametrize(("under", "reason"), [("file/runs", "Not a directory"), ("a" * 300, "File name too long")])
def test_an_output_folder_that_cannot_be_made_is_named(tmp_path: Path, under: str, reason: str) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UsageError) as caught:
        new_record(tmp_path / under)
    assert str(caught.value).startswith(f"cannot make the output folder {tmp_path / under}/")
    assert str(caught.value).endswith(f": {reason}; choose another with --out.")


def test_an_empty_run_can_be_discarded_and_no_other(tmp_path: Path) -> None:
    empty, full, logged = new_record(tmp_path), new_record(tmp_path, result()), new_record(tmp_path)
    (logged.folder / "logs").mkdir()
    for each in (empty, full, logged):
        each.discard_if_empty()
    assert not empty.folder.exists()
    assert full.path.exists()
    assert logged.path.exists()


def test_the_command_can_be_pasted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_module.sys, "argv", ["/bin/tp-harness", "verify", "--case", "my file.py:CASE"])
    assert command_line() == "tp-harness verify --case 'my file.py:CASE'"


CODES: list[tuple[str, int]] = [
    ("PASS PASS", 0),
    ("PASS SKIPPED", 0),
    ("PASS MISMATCH", 1),
    ("PASS SHAPE", 1),
    ("NONFINITE VOID", 1),
    ("PASS VOID", 4),
    ("MISMATCH CRASH PASS", 3),
    ("TIMEOUT VOID", 3),
    ("MISSING MISMATCH", 3),
    ("SKIPPED", 4),
    ("", 4),
]


@pytest.mark.parametrize(("statuses", "code"), CODES, ids=[statuses or "nothing" for statuses, _ in CODES])
def test_exit_code_incomplete_before_mismatch_before_void(tmp_path: Path, statuses: str, code: int) -> None:
    words = [Status(word) for word in statuses.split()]
    assert exit_code(words) == exit_code(words[::-1]) == code
    assert new_record(tmp_path, *(result(status=word) for word in words)).exit_code == code


def test_every_status_has_an_exit_code_of_its_own_or_passes() -> None:
    assert {status for status in Status if exit_code([Status.PASS, status]) == 0} == {Status.PASS, Status.SKIPPED}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (math.nan, "nan"),
        (math.inf, "inf"),
        (-math.inf, "-inf"),
        (1e308, 1e308),
        (-0.0, -0.0),
        (True, True),
        (None, None),
        ((1, (2.5, math.nan)), [1, [2.5, "nan"]]),
        ({"a": {"b": (math.inf,)}}, {"a": {"b": ["inf"]}}),
        (Status.CRASH, "CRASH"),
        (
            Worst(tensor="y", index=(0, 3), rank=1, actual=math.nan, expected=1.0),
            {"tensor": "y", "index": [0, 3], "rank": 1, "actual": "nan", "expected": 1.0},
        ),
    ],
    ids=["nan", "inf", "-inf", "large", "-0.0", "bool", "none", "tuple", "dict", "status", "dataclass"],
)
def test_to_json(value: object, expected: object) -> None:
    assert repr(to_json(value)) == repr(expected)  # repr: -0.0 and True are not 0 and 1
    json.dumps(to_json(value), allow_nan=False)


def test_a_result_keeps_everything_on_disk(tmp_path: Path) -> None:
    call = Collective(kind="all_reduce", group_size=8, shape=(2, 40, 96), dtype="float32", bytes=30720)
    rank = RankRecord(rank=0, core="cpu", wall_s=1.5, cpu_s=1.0, peak_bytes=9, weight_bytes=5, collectives=(call,))
    flip = Flip(layer="mlp", token=3, margin=1e-3, limit=1e-6, chosen=(0, 1), expected=(0, 2))
    full = result(
        gate=gate(math.nan),
        gates=(gate(math.nan), gate(1e-7)),
        checks=(Check(name="replicas", passed=False, detail="rank 1 holds 2 where rank 0 holds 1"),),
        worst=Worst(tensor="output.0", index=(0, 1), rank=1, actual=math.inf, expected=0.5),
        flips=(flip,),
        ranks=(rank,),
        first_divergence=Divergence(
            tensor="heads", kind="nonfinite", after="value", ranks=(3,), index=(0, 1), actual=math.nan, expected=0.5
        ),
        notes=("a", "b"),
    )
    (values,) = stored(new_record(tmp_path, full))["results"]
    assert values == to_json(full)
    assert values["gate"]["value"] == values["first_divergence"]["actual"] == "nan"
    assert values["ranks"][0]["collectives"][0]["shape"] == [2, 40, 96]


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
