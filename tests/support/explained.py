"""What diagnosis says of a case of the test's own in which something is wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from ladder import own_ladder

from tp_harness.case.case import Case
from tp_harness.diagnosis.explain import explain
from tp_harness.results.result import Result, Status

Patch = pytest.MonkeyPatch
BLANK = Result(
    component="own", tp=1, backend="local", dtype="float32", layer=0, draws=1, seed=0,
    status=Status.MISMATCH, reason="",
)  # fmt: skip


def explained(
    folder: Path, monkeypatch: Patch, case: Case, tp: int, wrong: Callable[[Patch], object], dtype: str = "float32"
) -> Result:
    """What is said of a case in which something is wrong while its ranks run."""
    own = own_ladder(folder, monkeypatch, case, dtypes=(dtype,))
    with monkeypatch.context() as patch:
        wrong(patch)
        evidence = own.evidence("own", tp, dtype, taps=True)
    return explain(evidence, replace(BLANK, dtype=dtype))
