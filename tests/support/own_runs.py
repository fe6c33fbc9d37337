"""Whole runs of own Cases on local ranks."""

from __future__ import annotations

from pathlib import Path

from ladder import options

from tp_harness.backends import choose_backend
from tp_harness.models.gpt_oss.config import PRESETS
from tp_harness.results.run_record import RunRecord, open_record
from tp_harness.verification.degrees import verify


def run_case(folder: Path, cases: str, name: str, degrees: tuple[int, ...], **fields: object) -> RunRecord:
    """The record of a run of the Case `name` in a file of this text; `fields` are further options."""
    path = folder / "cases.py"
    path.write_text(cases)
    chosen = options(targets=(("case", 0),), case=f"{path}:{name}", degrees=degrees, model=PRESETS["tiny"], **fields)
    record = open_record(folder / "out", command="", options={}, backend="local", blind_spots="")
    try:
        verify(chosen, choose_backend("local"), record, lambda _step: None)
    finally:
        record.release()
    return record
