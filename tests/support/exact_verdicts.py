"""Runs of Case files of this folder in exact arithmetic, by the user's command."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from command import LIBRARIES, Harness

from tp_harness.results.proof import at_most

HERE = Path(__file__).parent


def results(folder: Path, file: str, names: Iterable[str], *options: str, code: int) -> list[dict[str, Any]]:
    """The results of one run of a file's Cases with one draw, which ends with this exit code, in their order."""
    harness = Harness(folder, LIBRARIES)
    cases = [word for name in names for word in ("--case", f"{HERE / file}:{name}")]
    cache = f"import os; os.environ['TORCHINDUCTOR_CACHE_DIR'] = {str(folder / 'inductor')!r}"  # else in TMPDIR
    ended = harness.run([*cases, "--dtype", "exact", "--draws", "1", *options], patch=cache)
    found: list[dict[str, Any]] = harness.record()["results"]
    assert ended == [(code, "")], [(result["status"], result["reason"]) for result in found]
    return found


def assert_proved(folder: Path, file: str, names: Iterable[str], *options: str) -> None:
    """Each of a file's Cases is PROVED at every degree, with a control that was rejected."""
    found = results(folder, file, names, *options, code=0)
    assert {(r["component"], r["tp"]): r["reason"] for r in found if r["status"] != "PROVED"} == {}
    assert all(f"at most {at_most(r['proof']['bound'])}, typically" in r["reason"] for r in found)


def assert_different(folder: Path, file: str, cases: Mapping[str, str], *options: str) -> None:
    """Each of a file's Cases (name -> the first tensor that is wrong) is DIFFERENT, and that tensor is named."""
    found = results(folder, file, cases, "--tp", "2", "--no-fault-control", *options, code=1)
    assert [result["status"] for result in found] == ["DIFFERENT"] * len(cases)
    assert [result["first_divergence"]["tensor"] for result in found] == list(cases.values())
