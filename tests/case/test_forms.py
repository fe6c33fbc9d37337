"""What a forward takes and returns may have any form: each is verified, and a mistake in any part of it is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from forms import FORMS, WRONG
from own_runs import run_case

from tp_harness.results.result import Status

EXACTLY = {"COMPLEX": Status.NOT_PROVED}  # its numbers have no residues
DTYPES = ("exact", "float32", "bfloat16")


@pytest.mark.parametrize("name", WRONG)
def test_a_form_is_verified_and_a_mistake_in_it_found(tmp_path: Path, name: str) -> None:
    right = run_case(tmp_path, FORMS, name, (1, 4), dtypes=DTYPES, draws=1)
    found = {(r.tp, r.dtype): r.status for r in right.results}
    expected = {dtype: Status.PASS for dtype in DTYPES} | {"exact": EXACTLY.get(name, Status.PROVED)}
    assert found == {(tp, dtype): expected[dtype] for tp in (1, 4) for dtype in DTYPES}, right.results[0].reason
    (tmp_path / "wrong").mkdir()
    wrong = run_case(tmp_path / "wrong", FORMS, f"{name}_WRONG", (4,), dtypes=DTYPES, draws=1)
    for result in wrong.results:
        undecided = result.dtype == "bfloat16" and name == "WHOLE"
        assert result.status in ((Status.UNDECIDED,) if undecided else FAILED), (result.dtype, result.reason)
        assert WRONG[name] in result.reason, (result.dtype, result.reason)


FAILED = (Status.MISMATCH, Status.DIFFERENT, Status.MISSING)
