"""What two runs left is compared."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tp_harness.judge.gather import RankOutput
from tp_harness.ranks.rank_report import DtypeRun, RankReport, TensorKey
from tp_harness.verification.run_outputs import Left


def test_what_two_runs_left_is_compared_by_bits_and_by_distance() -> None:
    run = DtypeRun(results=("output.0",))

    def left(y: torch.Tensor) -> Left:
        report = RankReport(rank=0, core="", config_hash="", wall_s=0, cpu_s=0, runs={"float32": run})
        tensors = {TensorKey("float32", "locked", "output.0"): y}
        return Left.of({0: RankOutput(tensors=tensors, report=report)}, "float32", outputs=True)

    y = torch.ones(4)
    assert left(y).is_as(left(y.clone())) and not left(y).is_as(left(y + 1e-3))
    assert left(1.5 * y).off(left(y)) == pytest.approx(0.5)
    assert left(y[:2]).off(left(y)) == float("inf")
    assert not replace(left(y), digest="").is_as(left(y))
