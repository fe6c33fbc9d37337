"""Megatron-Core's own layers, which make their process groups themselves: right ones pass, a mistake is seen."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from command import Harness

CASES = Path(__file__).parents[1] / "support" / "megatron_cases.py"
pytestmark = pytest.mark.skipif(find_spec("megatron") is None, reason="megatron-core is not installed")


@pytest.mark.parametrize(("name", "status"), [("RIGHT", "PASS"), ("WRONG", "MISMATCH")])
@pytest.mark.parametrize("kind", ["MLP", "EMBEDDING"])
def test_its_layers_are_judged_at_every_degree(tmp_path: Path, kind: str, name: str, status: str) -> None:
    harness = Harness(tmp_path)
    given = ("--case", f"{CASES}:{name}_{kind}", "--tp", "2,8", "--draws", "1", "--dtype", "float32")
    cache = f"import os; os.environ['TORCHINDUCTOR_CACHE_DIR'] = {str(tmp_path / 'inductor')!r}"  # else in TMPDIR
    assert harness.code(*given, patch=cache) == (0 if status == "PASS" else 1)
    assert harness.statuses() == [(kind.lower(), tp, "float32", status) for tp in (2, 8)]
    controls = harness.record()["controls"]
    assert [(control["tp"], control["rejected"]) for control in controls] == [(2, True), (8, True)]
