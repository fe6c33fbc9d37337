"""A few of the inputs that `make fuzz` tries by the hundred, and a proof that it would see a failure."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import fuzz
import pytest
from fuzz_attempt import attempt, no_ranks
from fuzz_files import fuzz_config

from tp_harness import cli, models


@pytest.mark.parametrize(("kind", "count"), [("config", 60), ("case", 12), ("header", 60), ("cli", 15), ("resume", 40)])
def test_hostile_input_is_refused_in_one_sentence(kind: str, count: int) -> None:
    tally = fuzz.fuzz(kind, count)
    assert not tally.failures
    assert tally.ends["refused"] > 0
    assert tally.ends.total() >= count


def test_good_input_gets_as_far_as_the_ranks(tmp_path: Path) -> None:
    with no_ranks(tmp_path):
        assert attempt(["verify", "--component", "rmsnorm", "--tp", "2", "--out", str(tmp_path / "out")]) == "accepted"


@pytest.mark.parametrize("broken", ["raises", "two_lines", "wrong_code", "escape"])
def test_a_failure_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    def wrong(_path: Path) -> object:
        if broken == "raises":
            raise ZeroDivisionError("a bug")
        print({"two_lines": "tp-harness: a\nb", "escape": "tp-harness: \x1b[2J"}.get(broken, ""), file=sys.stderr)
        raise SystemExit(3 if broken == "wrong_code" else 2)

    monkeypatch.setattr(models, "read_json_object", wrong)
    with pytest.raises(AssertionError):
        fuzz_config(tmp_path, random.Random(1))
    tally = fuzz.fuzz("config", 3)
    assert tally.ends["failed"] and tally.failures
    monkeypatch.undo()
    assert cli.main(["list", "nothing"]) == 2
