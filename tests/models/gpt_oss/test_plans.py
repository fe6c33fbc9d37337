"""The built-in components under each plan, through the whole way to a verdict."""

from __future__ import annotations

from pathlib import Path

import pytest
from ladder import Ladder
from served_plans import run_by

from tp_harness.results.result import Status

DTYPES = ("exact", "float32", "bfloat16")


def assert_passes(folder: Path, component: str, tp: int) -> None:
    ladder = Ladder(folder, targets=((component, 0),), dtypes=DTYPES)
    results = {dtype: ladder.run(component, tp, dtype) for dtype in DTYPES}
    found = {dtype: (result.status, result.reason) for dtype, result in results.items()}
    assert [status for status, _ in found.values()] == [Status.PROVED, Status.PASS, Status.PASS], found


@pytest.mark.parametrize("tp", [2, 8])
@pytest.mark.parametrize(
    "component", ["attention", "mlp", "transformer_block", "embedding", "unembedding", "transformer"]
)
def test_sequence_parallel_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, component: str, tp: int) -> None:
    run_by(monkeypatch, "sp")
    assert_passes(tmp_path, component, tp)


@pytest.mark.parametrize("tp", [1, 2, 8])
@pytest.mark.parametrize("plan", ["ep", "ep-tp"])
@pytest.mark.parametrize("component", ["attention", "mlp", "transformer"])
def test_expert_parallel_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, component: str, plan: str, tp: int
) -> None:
    run_by(monkeypatch, plan)
    assert_passes(tmp_path, component, tp)
