"""Reports of nccom-test: a recorded one replaces the constants, a bad one is refused in one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tp_harness.cli import main
from tp_harness.errors import UsageError
from tp_harness.models.gpt_oss.config import PRESETS
from tp_harness.trn1.collectives import Collectives, parse_nccom, read_nccom
from tp_harness.trn1.messages import Message
from tp_harness.trn1.predict import predict

# What the nccom-test guide shows for `-r 32 ... allg --report-to-json-file`.
RECORDED = """{"results": [
 {"size(B)": 1024, "count(elems)": 256, "type": "fp32", "algbw(GB/s)": 0.16553675170497603,
  "busbw(GB/s)": 0.16036372821419553, "time:avg(us)": 6.19},
 {"size(B)": 524288, "count(elems)": 131072, "type": "fp32", "algbw(GB/s)": 22.688776793562784,
  "busbw(GB/s)": 21.97975251876395, "time:avg(us)": 23.11}]}"""


def report(factor: float, *times: float, key: str = "time:avg(us)") -> dict[str, Any]:
    rows = [{"size(B)": 1024 << 2 * i, "algbw(GB/s)": 1 / t, "busbw(GB/s)": factor / t, key: t}
            for i, t in enumerate(times)]  # fmt: skip
    return {"results": rows}


def test_a_recorded_report_replaces_the_constants(tmp_path: Path) -> None:
    path = tmp_path / "allg.json"
    path.write_text(RECORDED)
    collectives = read_nccom([path])
    assert [(t.kind, t.ranks) for t in collectives.measured] == [("all_gather", 32)]
    gather = Message(kind="all_gather", bytes=1024 // 32, ranks=32)  # a rank's input; the report counts the output
    assert collectives.seconds(gather) == pytest.approx(6.19e-6)
    assert collectives.seconds(replace(gather, bytes=(1024 + 524288) // 64)) == pytest.approx(14.65e-6)
    assert collectives.seconds(replace(gather, bytes=4 * 524288 // 32)) == pytest.approx(4 * 23.11e-6)
    for message in (replace(gather, ranks=8), Message(kind="all_reduce", bytes=32, ranks=32)):
        assert collectives.seconds(message) == Collectives().seconds(message)


def test_degrees_without_a_measured_reduction_are_named() -> None:
    def note(*factors: float) -> list[str]:
        tables = tuple(parse_nccom(report(f, 50.0), source="x") for f in factors)
        prediction = predict(PRESETS["tiny"], name="", collectives=Collectives(measured=tables))
        return [text for text in prediction.notes if "no all-reduce was measured" in text]

    assert note() == note(1.0, 1.75, 1.9375) == []
    assert note(1.9375)[0].startswith("no all-reduce was measured over 2, 8 ranks")
    assert note(0.875)[0].startswith("no all-reduce was measured over 2, 8, 32 ranks")


@pytest.mark.parametrize(
    ("factor", "operation"),
    [(1.0, ("all_reduce", 2)), (1.75, ("all_reduce", 8)), (1.9375, ("all_reduce", 32)), (0.875, ("all_gather", 8))],
)
def test_the_operation_follows_from_the_bandwidths(factor: float, operation: tuple[str, int]) -> None:
    for key in ("time:avg(us)", "time(us)"):  # of 2026 and of 2023
        table = parse_nccom(report(factor, 50.0, 60.0, key=key), source="x")
        assert (table.kind, table.ranks) == operation
        assert [size for size, _ in table.points] == [1024, 4096]
        assert [seconds for _, seconds in table.points] == pytest.approx([50e-6, 60e-6])


def spoiled(edit: Callable[[dict[str, Any]], object]) -> str:
    values = report(1.75, 50.0, 60.0)
    edit(values)
    return json.dumps(values)


BAD_REPORTS = {
    "not-json": ("size(B) count(elems)", "is not JSON"),
    "no-results": ("{}", "is no report of nccom-test (it lacks 'results')"),
    "a-list": ("[1]", "is no report of nccom-test"),
    "empty": ('{"results": []}', "holds no positive times"),
    "no-time": (spoiled(lambda v: v["results"][0].pop("time:avg(us)")), "it lacks 'time(us)'"),
    "no-bandwidth": (spoiled(lambda v: v["results"][0].update({"algbw(GB/s)": 0})), "is no report of nccom-test"),
    "negative": (spoiled(lambda v: v["results"][0].update({"time:avg(us)": -1})), "holds no positive times"),
    "two-operations": (spoiled(lambda v: v["results"][0].update({"busbw(GB/s)": 0.02})), "which is neither"),
    "no-operation": (json.dumps(report(2.5, 50.0)), "which is neither an all-reduce"),
}


@pytest.mark.parametrize("name", BAD_REPORTS)
def test_a_bad_report_is_one_sentence(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, message = BAD_REPORTS[name]
    path = tmp_path / "report.json"
    path.write_text(text)
    assert main(["model", "--nccom", str(path)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"tp-harness: {path} ") and message in captured.err
    assert captured.err.count("\n") == 1 and not captured.out


def test_two_reports_of_one_operation_are_refused(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.json", "b.json")]
    for path in paths:
        path.write_text(RECORDED)
    with pytest.raises(UsageError, match=r"both measure all_gather over 32 ranks; give one\.$"):
        read_nccom(paths)
    with pytest.raises(UsageError, match="cannot read"):
        read_nccom([tmp_path / "absent.json"])
