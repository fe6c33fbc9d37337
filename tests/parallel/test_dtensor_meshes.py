"""DTensors on meshes of two dimensions: read by their own placements, whatever the Case calls the axes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from command import harness_of
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor import Partial as Sum
from torch.distributed.tensor.placement_types import _StridedShard

from tp_harness.case.plan import stand_in_group
from tp_harness.parallel import dtensors, placements
from tp_harness.parallel.on_mesh import on_mesh
from tp_harness.results.from_json import from_json
from tp_harness.results.result import to_json

CASES = '''
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate as Whole, Shard as Cut, distribute_tensor
from tp_harness import Case, Replicate, Shard

class MLP(nn.Module):
    slope = 1.0

    def __init__(self):
        super().__init__()
        self.up, self.down, self.hidden = nn.Linear(12, 64), nn.Linear(64, 20), nn.Identity()

    def forward(self, x):
        return self.down(self.hidden(torch.relu(self.slope * self.up(x))))

class Grid(MLP):
    """Rows and columns of both matrices are cut, along the two axes of a mesh."""

    def __init__(self):
        super().__init__()
        self.mesh = mesh = init_device_mesh("cpu", (2, dist.get_world_size() // 2), mesh_dim_names=("a", "b"))
        cuts = {"up.weight": [Cut(1), Cut(0)], "up.bias": [Whole(), Cut(0)], "down.weight": [Cut(0), Cut(1)],
                "down.bias": [Cut(0), Whole()]}
        for name, cut in cuts.items():
            owner, _, own = name.partition(".")
            full = self.get_submodule(owner).get_parameter(own).detach()
            setattr(self.get_submodule(owner), own, nn.Parameter(distribute_tensor(full, mesh, cut)))

    def forward(self, x):
        x = DTensor.from_local(x, self.mesh, [Whole(), Whole()], run_check=False)
        return super().forward(x).redistribute(placements=[Whole(), Whole()])

class Steep(Grid):
    slope = 0.9

def case(sharded, plan={}, **fields):
    return Case(name="own", reference=MLP, sharded=sharded, plan=plan,
                inputs=lambda generator: (torch.randn(4, 8, 12, generator=generator),), **fields)

GRID = {"rows": 2, "columns": 2}
SAID = {"up.weight": {"rows": Shard(-1), "columns": Shard(0)}, "down.bias": {"rows": Shard(0)}}
READ, AGREED, STEEP = case(Grid), case(Grid, SAID, mesh=GRID), case(Steep, taps={"hidden": Replicate()})
OTHER = case(Grid, SAID | {"up.weight": {"columns": Shard(-1), "rows": Shard(0)}}, mesh=GRID)
'''


def run(folder: Path, *names: str) -> tuple[int, str, dict[str, Any]]:
    harness = harness_of(folder, CASES)
    [(code, text)] = harness.run(
        [*harness.named(names), "--tp", "4", "--draws", "1", "--dtype", "float32", "--dtype", "exact"]
    )
    return code, text, harness.record() if code != 2 else {}


def test_modules_of_such_dtensors_are_read_and_judged(tmp_path: Path) -> None:
    code, text, record = run(tmp_path, "READ", "AGREED", "STEEP")
    assert code == 1, text
    status = {(r["component"], r["dtype"]): r["status"] for r in record["results"]}
    assert status == {
        (f"own ({name})", dtype): words[dtype]
        for name, words in {
            "READ": {"float32": "PASS", "exact": "PROVED"},
            "AGREED": {"float32": "PASS", "exact": "PROVED"},
            "STEEP": {"float32": "MISMATCH", "exact": "DIFFERENT"},
        }.items()
        for dtype in ("float32", "exact")
    }
    assert all(control["rejected"] for control in record["controls"])
    assert {r["first_divergence"]["tensor"] for r in record["results"] if "STEEP" in r["component"]} == {"hidden"}


def test_a_plan_that_says_otherwise_is_refused_before_any_rank(tmp_path: Path) -> None:
    code, text, _ = run(tmp_path, "OTHER")
    assert code == 2
    assert "the plan of own places up.weight as {rows: Shard(dim=0, unit=1), columns: Shard(dim=-1, unit=1)} on" in text
    assert "placed as {a: Shard(dim=1, unit=1), b: Shard(dim=0, unit=1)} on a 2 x b 2: correct one of them" in text


@pytest.fixture
def group_of_4() -> Iterator[None]:
    with stand_in_group(4, real=True):
        yield


GRID = {"a": 2, "b": 2}


def test_two_dimensions_are_placed_one_after_the_other(group_of_4: None) -> None:
    full, mesh = torch.arange(32.0).view(8, 4), init_device_mesh("cpu", (2, 2), mesh_dim_names=("a", "b"))
    x = distribute_tensor(full, mesh, [Shard(1), Shard(0)], src_data_rank=None)
    read = dtensors.placement_of("x", x)
    assert read == on_mesh(GRID, {("a",): placements.Shard(1), ("b",): placements.Shard(0)})
    assert torch.equal(dtensors.local(x), read.shard(full, 0, 4))
    again = dtensors.like(full, x)
    assert isinstance(again, DTensor) and again.placements == x.placements
    placed = dtensors.Placed.of(read)
    assert from_json(dtensors.Placed, to_json(placed)).placement == read


def test_what_two_dimensions_cut_alike_is_one_cut_over_all_ranks(group_of_4: None) -> None:
    mesh, full = init_device_mesh("cpu", (2, 2)), torch.zeros(8)
    assert dtensors.placement_of("x", distribute_tensor(full, mesh, [Shard(0)] * 2, src_data_rank=None)) == (
        placements.Shard(0)
    )
    sums = DTensor.from_local(full, mesh, [Sum(), Replicate()], run_check=False)
    assert dtensors.placement_of("x", sums) == on_mesh({"0": 2, "1": 2}, {("0",): placements.Partial()})


def test_a_dimension_that_is_cut_last_though_it_comes_first(group_of_4: None) -> None:
    """As a DTensor is placed of which fully_shard has cut a tensor-parallel shard."""
    mesh, full = init_device_mesh("cpu", (2, 2), mesh_dim_names=("a", "b")), torch.arange(8.0)
    x = distribute_tensor(full, mesh, [_StridedShard(0, split_factor=2), Shard(0)], src_data_rank=None)
    read = dtensors.placement_of("x", x)
    assert read is not None
    assert [shard.tolist() for shard in read.split(full, 4)] == [[0, 1], [4, 5], [2, 3], [6, 7]]
    assert torch.equal(dtensors.local(x), read.shard(full, 0, 4))


def test_axes_agree_whatever_they_are_called() -> None:
    def grid(first: str, second: str, **cuts: placements.Placement) -> placements.Placement:
        return on_mesh({first: 2, second: 4}, {(axis,): cut for axis, cut in cuts.items()})

    read = grid("a", "b", a=placements.Shard(1), b=placements.Shard(0))
    assert dtensors.agree(grid("ep", "tp", ep=placements.Shard(-1), tp=placements.Shard(0)), read, ndim=2, size=8)
    for other in (
        grid("ep", "tp", ep=placements.Shard(0), tp=placements.Shard(1)),
        grid("ep", "tp", tp=placements.Shard(0)),
        on_mesh({"ep": 4, "tp": 2}, {("ep",): placements.Shard(1), ("tp",): placements.Shard(0)}),
        placements.Shard(0),
    ):
        assert not dtensors.agree(other, read, ndim=2, size=8)
