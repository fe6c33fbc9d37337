"""Components on virtual cores: torch-xla's graphs, XLA's compiler and collectives, in processes of their own."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from command import Harness

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("torch_xla") is None, reason="torch-xla is not installed here: `make test-xla`"
)


@pytest.fixture
def harness(tmp_path: Path) -> Harness:
    return Harness(tmp_path)


def test_every_component_is_one_program_at_every_degree(harness: Harness) -> None:
    assert harness.code("--backend", "xla", "--draws", "2") == 0
    results = harness.record()["results"]
    assert len(results) == 80
    assert {r["status"] for r in results} == {"PASS"}
    for result in results:
        checks = {check["name"]: check for check in result["checks"]}
        assert checks["program"]["passed"] and checks["program schedule"]["passed"]
        assert result["program"]["compiles"] == 1
        assert result["program"]["fallbacks"] == []
        groups = [list(range(result["tp"]))]
        assert all(call["groups"] == [*groups] for call in result["program"]["collectives"])
    programs = {r["program"]["fingerprint"] for r in results if r["tp"] == 32 and r["dtype"] == "float32"}
    assert len(programs) == 10  # one per component and layer, whatever the draws
