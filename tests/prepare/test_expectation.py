"""What an expectation keeps of its reference's runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ladder import Ladder


def test_what_keeps_its_runs_with_taps_has_the_runs_so_far_too(tmp_path: Path) -> None:
    whole = Ladder(tmp_path, targets=(("rmsnorm", 0),)).evidence("rmsnorm", 1).expectation
    plain = replace(whole, kept=None)
    before = plain.baselines
    first, second = plain.keeping(), plain.keeping()
    assert plain.run_tapped("float32") is not plain.run_tapped("float32")
    assert first.run_tapped("float32") is first.run_tapped("float32") is not second.run_tapped("float32")
    assert first.baselines is before and first.oracle is plain.oracle
