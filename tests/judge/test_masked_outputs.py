"""Outputs that hold masks: they are compared exactly, and the numbers beside them as if they were not there."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from ladder import own_verdicts
from torch import nn

from tp_harness.case.case import Case
from tp_harness.judge.distance import without_constants
from tp_harness.parallel.group import current_group
from tp_harness.parallel.placements import Shard
from tp_harness.results.result import Result, Status

TOKENS, HIDDEN, WIDE = 24, 32, 48
LOWEST = "torch.finfo(dtype).min"
MASKS = (-math.inf, LOWEST, -1e30, -1e9, -1e5, 1e9)


class Scores(nn.Module):
    """Scores of tokens beside each other, later ones masked; ranks may scale them or mask one diagonal less.

    With a `window`, those that lie farther back are masked too.
    """

    mask: float | str
    scale, later, window = 1.0, 0, TOKENS

    def __init__(self) -> None:
        super().__init__()
        self.group = current_group()
        self.up, self.down = nn.Linear(HIDDEN, WIDE // self.group.size), nn.Linear(WIDE // self.group.size, HIDDEN)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        ranks = self.group.size > 1
        y = self.group.all_reduce(self.down(torch.relu(self.up(x))) - self.down.bias) + self.down.bias
        scores = y @ x.mT * (self.scale if ranks else 1.0)
        value = torch.finfo(x.dtype).min if isinstance(self.mask, str) else self.mask
        seen = torch.ones_like(scores).tril(self.later * ranks).triu(1 - self.window).bool()
        return scores.masked_fill(~seen, value)


def verdicts(folder: Path, patch: pytest.MonkeyPatch, mask: float | str, **mistake: float) -> dict[str, Result]:
    """By dtype."""
    module = type("Own", (Scores,), {"mask": mask, **mistake})
    case = Case(
        name="own",
        reference=module,
        sharded=module,
        plan={"up.weight": Shard(0), "up.bias": Shard(0), "down.weight": Shard(1)},
        inputs=lambda generator: (torch.randn(TOKENS, HIDDEN, generator=generator),),
    )
    return own_verdicts(folder, patch, case)


@pytest.mark.parametrize("window", [TOKENS, 3])
@pytest.mark.parametrize("mask", MASKS, ids=str)
def test_masks_are_no_mistake_and_hide_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mask: float | str, window: int
) -> None:
    found = verdicts(tmp_path / "right", monkeypatch, mask, window=window)
    assert {dtype: (r.status, r.reason) for dtype, r in found.items() if r.status is not Status.PASS} == {}
    for name, mistake in {"slight": {"scale": 1.001}, "plain": {"scale": 2.0}, "mask": {"later": 1}}.items():
        found = verdicts(tmp_path / name, monkeypatch, mask, window=window, **mistake)
        assert found["float32"].status is Status.MISMATCH
        assert found["bfloat16"].status is Status.MISMATCH or name == "slight"
        assert all(gate.value < math.inf for gate in found["float32"].gates), "a number that can be shown"


@pytest.mark.parametrize(("value", "status"), [(math.inf, Status.NONFINITE), (math.nan, Status.NONFINITE)])
def test_what_masks_nothing_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float, status: Status
) -> None:
    found = verdicts(tmp_path / "own", monkeypatch, value)
    assert {(r.status, r.reason) for r in found.values()} == {
        (status, f"output.0 of the float64 reference has {value} at [0, 1]")
    }


def test_an_output_that_is_masked_everywhere_proves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = verdicts(tmp_path / "own", monkeypatch, -math.inf, later=0, scale=-math.inf)
    assert Status.PASS not in {r.status for r in found.values()}


def test_a_large_number_that_is_not_exact_stays() -> None:
    oracle = torch.tensor([1.0, 2.0, -1e9, -math.inf, 3.0], dtype=torch.float64)
    near = oracle.clone()
    near[2] -= 1.0
    kept = without_constants(oracle, near)
    assert [x.tolist() for x in kept] == [[1.0, 2.0, -1e9, 0.0, 3.0], [1.0, 2.0, -1e9 - 1.0, 0.0, 3.0]]
    assert without_constants(oracle, oracle)[0].tolist() == [1.0, 2.0, 0.0, 0.0, 3.0]


def test_a_mask_may_be_rounded_otherwise() -> None:
    oracle = torch.tensor([1.0, 2.0, -1e9 / 0.7, -math.inf, 3.0], dtype=torch.float64)
    near = torch.nextafter(oracle.float(), torch.tensor(-math.inf))
    assert without_constants(oracle, near)[0].tolist() == [1.0, 2.0, 0.0, 0.0, 3.0]
