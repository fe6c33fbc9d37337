"""run.json: whole at any time, strict JSON, and with an exit code that says what was found."""

from __future__ import annotations

import json
import math
import threading
from pathlib import Path
from typing import Any

import pytest
from records import OPTIONS, fill_disk_half_way, gate, new_record, result

from tp_harness.errors import UsageError
from tp_harness.results import run_record as record_module
from tp_harness.results.result import Check, Collective, Divergence, Flip, RankRecord, Status, Worst, exit_code, to_json
from tp_harness.results.run_record import RunRecord, command_line


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
    ("PROVED", 0),
    ("PROVED NOT-PROVED", 0),
    ("PASS NOT-PROVED", 0),
    ("NOT-PROVED", 4),
    ("PROVED PASS DIFFERENT", 1),
    ("DIFFERENT NOT-PROVED VOID", 1),
    ("DIFFERENT CRASH", 3),
    ("", 4),
]


@pytest.mark.parametrize(("statuses", "code"), CODES, ids=[statuses or "nothing" for statuses, _ in CODES])
def test_exit_code_incomplete_before_mismatch_before_void(tmp_path: Path, statuses: str, code: int) -> None:
    words = [Status(word.replace("-", " ")) for word in statuses.split()]
    assert exit_code(words) == exit_code(words[::-1]) == code
    assert new_record(tmp_path, *(result(status=word) for word in words)).exit_code == code


def test_every_status_has_an_exit_code_of_its_own_or_passes() -> None:
    passing = {status for status in Status if exit_code([Status.PASS, status]) == 0}
    assert passing == {Status.PASS, Status.PROVED, Status.NOT_PROVED, Status.UNDECIDED, Status.SKIPPED}


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
