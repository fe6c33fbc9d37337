"""What no fault of the registry shows: two more mistakes, weights that hide one, and the verdicts on own cases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ladder import Ladder, mistake, own_ladder
from torch import nn
from torch.nn import functional as F  # noqa: N812

from tp_harness.case.family_case import FamilyCase
from tp_harness.faults import find_fault
from tp_harness.faults.ways import sets
from tp_harness.parallel.group import current_group
from tp_harness.parallel.placements import Shard
from tp_harness.results.result import Result, Status

GATE = ("rel_L2 of ", "worst token of ")
Patch = pytest.MonkeyPatch


@pytest.fixture(scope="module")
def ladder(tmp_path_factory: pytest.TempPathFactory) -> Ladder:
    return Ladder(tmp_path_factory.mktemp("ladder"), dtypes=("float32",))


def test_a_softmax_scale_of_the_local_width_is_a_mismatch(ladder: Ladder) -> None:
    scale = sets("", softmax_scale=lambda module, group: (96 / group.size) ** -0.5)
    result = ladder.run("attention", 8, fault=mistake(scale))
    assert result.status is Status.MISMATCH
    assert result.reason.startswith(GATE)


def test_positions_off_by_the_rank_are_right_in_attention(ladder: Ladder) -> None:
    """It sees the distance of query and key alone; of rope itself the registry has the fault."""
    shifted = sets(
        "rope", **{name: lambda rope, group, n=name: getattr(rope, n).roll(-group.rank, 0) for name in ("cos", "sin")}
    )
    assert ladder.run("attention", 8, fault=mistake(shifted)).status is Status.PASS


def test_constant_weights_hide_what_discriminating_ones_show(ladder: Ladder, tmp_path: Path) -> None:
    weak = Ladder(tmp_path, targets=(("attention", 0),), init="constant", dtypes=("float32",))
    fault = find_fault("heads-reversed")
    assert tuple(weak.run("attention", 8, fault=fault).rejections) == ("reassembly",), "what is computed has passed"
    shown = ladder.run("attention", 8, fault=fault)
    assert shown.status is Status.MISMATCH
    assert {"reassembly", "rel_L2 of output.0"} < set(shown.rejections)


class Sums(nn.Module):
    """x A + x B, or a part of both sums."""

    def __init__(self, inner: int) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.empty(12, inner)), nn.Parameter(torch.empty(12, inner))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.a.to(x.dtype)) + F.linear(x, self.b.to(x.dtype))


class ShardedSums(Sums):
    """Reduces (batch, seq, 12) and then the same flattened; ranks in `swapped` the other way round."""

    swapped: tuple[int, ...] = ()

    def __init__(self, inner: int) -> None:
        self.group = current_group()
        super().__init__(inner // self.group.size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mine = x.chunk(self.group.size, -1)[self.group.rank]
        parts = [F.linear(mine, self.a.to(x.dtype)), F.linear(mine, self.b.to(x.dtype)).flatten(0, 1)]
        for i in (1, 0) if self.group.rank in self.swapped else (0, 1):
            parts[i] = self.group.all_reduce(parts[i])
        return parts[0] + parts[1].view_as(parts[0])


class Flat(nn.Module):
    """The same number for every token and feature: the mean of the weights."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.group = current_group()
        self.weight = nn.Parameter(torch.empty(count // self.group.size, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        total = self.group.all_reduce(self.weight.to(x.dtype).sum() / 64)
        return total.expand(*x.shape[:2], 8).contiguous()


def run_own(folder: Path, monkeypatch: Patch, tp: int, **fields: Any) -> Result:
    """Verify an own case."""
    defaults: dict[str, Any] = {
        "name": "own",
        "reference": lambda: Sums(64),
        "sharded": lambda: ShardedSums(64),
        "inputs": lambda generator: (torch.randn(2, 24, 64, generator=generator),),
        "plan": {"a": Shard(1), "b": Shard(1)},
    }
    return own_ladder(folder, monkeypatch, FamilyCase(**(defaults | fields))).run("own", tp)


def test_a_swapped_collective_order_that_outputs_hide(tmp_path: Path, monkeypatch: Patch) -> None:
    clean = run_own(tmp_path, monkeypatch, 8)
    assert clean.status is Status.PASS
    monkeypatch.setattr(ShardedSums, "swapped", (2, 5))
    swapped = run_own(tmp_path, monkeypatch, 8)
    assert swapped.reason == (
        "schedule: rank 2 against rank 0: call 0 is all_reduce [48, 12] float32 over 8 ranks "
        "instead of all_reduce [2, 24, 12] float32 over 8 ranks"
    )
    assert [check.name for check in swapped.checks if not check.passed] == ["schedule"]
    assert all(gate.passed for gate in swapped.gates)


@pytest.mark.parametrize(("given", "used"), [(0, 64), (7, 7)])
def test_the_longest_sum_is_the_case_s_or_the_largest_dimension(
    tmp_path: Path, monkeypatch: Patch, given: int, used: int
) -> None:
    assert f" sqrt({used}) 2^-24" in run_own(tmp_path, monkeypatch, 2, reduction=given).gates[0].reason


def test_a_missing_all_reduce_of_an_own_case(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(ShardedSums, "forward", Sums.forward)
    result = run_own(tmp_path, monkeypatch, 8, input_placements=(Shard(2),))
    assert result.reason.startswith("replicas: output.0: rank 1 holds ")


@pytest.mark.parametrize(
    ("tp", "replicated", "status"), [(8, False, Status.VOID), (1, False, Status.PASS), (8, True, Status.PASS)]
)
def test_sharding_nothing_is_void(
    tmp_path: Path, monkeypatch: Patch, tp: int, replicated: bool, status: Status
) -> None:
    result = run_own(tmp_path, monkeypatch, tp, sharded=lambda: Sums(64), plan={}, replicated=replicated)
    assert result.status is status
    void = "nothing was sharded at tp 8: every rank held the full parameters and inputs"
    assert (result.reason == void) == (status is Status.VOID)


def test_a_constant_output_is_void(tmp_path: Path, monkeypatch: Patch) -> None:
    """Nothing that moves elements about could be seen in it."""
    fields = {"reference": lambda: Flat(64), "sharded": lambda: Flat(64), "plan": {"weight": Shard(0)}}
    result = run_own(tmp_path, monkeypatch, 8, **fields)
    assert result.reason == "the control passed: output.0 rolled by one element was not rejected"
    assert result.status is Status.VOID
    assert all(gate.passed for gate in result.gates)
