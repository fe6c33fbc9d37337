"""Modules whose parameters, outputs and taps are DTensors: read by their placements, judged like any other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import command
import pytest
import torch
import torch.distributed as dist
from command import harness_of
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor import Partial as Sum
from torch.distributed.tensor.placement_types import _StridedShard

from tp_harness.case.plan import stand_in_group
from tp_harness.parallel import dtensors, placements
from tp_harness.parallel.placements import KVHeads, StridedShard

CASES = '''
import os
from pathlib import Path

os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(__file__).parent / "inductor")  # else it stays in TMPDIR
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor import Replicate as Whole, Shard as Cut
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from tp_harness import Case, Partial, Replicate, Shard

class MLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down, self.hidden = nn.Linear(12, 64), nn.Linear(64, 20), nn.Identity()

    def forward(self, x):
        return self.down(self.hidden(torch.relu(self.up(x))))

class Slope(MLP):
    """The wrong activation."""

    def forward(self, x):
        return self.down(self.hidden(torch.relu(0.9 * self.up(x))))

class Once(MLP):
    """The bias of the last layer is added by the reference alone."""

    def forward(self, x):
        return super().forward(x) - self.down.bias

class Router(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate, self.router_logits, self.chosen = nn.Linear(12, 8, bias=False), nn.Identity(), nn.Identity()

    def forward(self, x):
        logits = self.router_logits(self.gate(x))
        chosen = self.chosen(logits.topk(2, -1).indices)
        return logits.gather(-1, chosen).softmax(-1)

def parallel(module, up=None, down=None, shape=None):
    shape = shape or (dist.get_world_size(),)
    mesh = init_device_mesh("cpu", shape)
    return parallelize_module(module(), mesh, {"up": up or ColwiseParallel(), "down": down or RowwiseParallel()})

def sharded(module=MLP, **styles):
    return lambda: parallel(module, **{name: style() for name, style in styles.items()})

def some_ranks():
    mesh = init_device_mesh("cpu", (2, dist.get_world_size() // 2), mesh_dim_names=("data", "model"))["model"]
    module = MLP()
    weight = module.up.weight
    module.up.weight = nn.Parameter(DTensor.from_local(weight.chunk(2)[0], mesh, [Cut(0)], run_check=False))
    return module

def router():
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    logits = ColwiseParallel(output_layouts=Whole(), use_local_output=False)
    return parallelize_module(Router(), mesh, {"gate": logits})

def kept():
    """It loads its shards itself, and its parameters stay DTensors."""
    module = parallel(MLP)
    own = lambda: {name: x.to_local() if isinstance(x, DTensor) else x for name, x in MLP.state_dict(module).items()}
    module.state_dict = lambda *rest, **named: own()

    def load(values, assign=False):
        with torch.no_grad():
            for name, x in own().items():
                x.copy_(values[name])

    module.load_state_dict = load
    return module

PLAN = {"up.weight": Shard(0), "up.bias": Shard(-1), "down.weight": Shard(1)}

def case(module=None, plan=PLAN, reference=MLP, draw=lambda g: (torch.randn(4, 8, 12, generator=g),), **fields):
    return Case(name="own", reference=reference, sharded=module or sharded(), plan=plan, inputs=draw, **fields)

RIGHT, NO_PLAN, KEPT = case(), case(plan={}), case(kept)
CUT_OUT = sharded(down=lambda: RowwiseParallel(output_layouts=Cut(-1), use_local_output=False))
CUT, CUT_BY_MISTAKE = (case(CUT_OUT, output=output) for output in (Shard(2), Replicate()))
TAPPED = case(sharded(Slope, up=lambda: ColwiseParallel(use_local_output=False)), taps={"hidden": Shard(-1)})
ADDED = case(sharded(MLP), reference=Once, plan={})
OTHER_PLAN, SOME_RANKS = case(plan=PLAN | {"up.weight": Shard(1)}), case(some_ranks)
ROUTED = case(router, {}, Router, lambda g: (torch.randn(32, 12, generator=g),), routing=("",))
'''


RIGHT = ("RIGHT", "NO_PLAN", "KEPT", "CUT", "ROUTED")
WRONG = ("CUT_BY_MISTAKE", "TAPPED", "ADDED")


def verified(folder: Path, names: tuple[str, ...], code: int, *given: str) -> dict[str, Any]:
    """The record of a run of these cases on 2 ranks."""
    cache = f"import os; os.environ['TORCHINDUCTOR_CACHE_DIR'] = '{folder}'"
    return command.verified(folder, CASES, names, code, "--tp", "2", *given, patch=cache)


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return verified(tmp_path_factory.mktemp("right"), RIGHT, 0, "--dtype", "float32", "--repeats", "1")


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    record = verified(tmp_path_factory.mktemp("wrong"), WRONG, 1, "--dtype", "exact", "--dtype", "float32")
    rejected = {"SHAPE", "DIFFERENT", "MISMATCH"}
    assert {result["status"] for result in record["results"]} <= rejected, "each one is rejected"
    return record


def of(record: dict[str, Any], name: str, part: str = "results", dtype: str = "float32") -> dict[str, Any]:
    """The one result, or control, of a case in a dtype."""
    [found] = [each for each in record[part] if (each["component"], each["dtype"]) == (f"own ({name})", dtype)]
    return found  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_one_passes_with_a_control_that_is_rejected(right: dict[str, Any], name: str) -> None:
    result, control = of(right, name), of(right, name, "controls")
    assert (result["status"], control["rejected"]) == ("PASS", True)
    kinds = [call["kind"] for call in result["ranks"][0]["collectives"]]
    assert kinds == {"CUT": ["reduce_scatter"], "ROUTED": ["all_gather"]}.get(name, ["all_reduce"])
    assert name == "ROUTED" or result["ranks"][0]["flops"] == 32 * (12 * 64 + 64 * 20), "of a rank's own data"
    whole = 4 * (12 * 64 + 64 + 64 * 20 + 20)
    held = result["ranks"][1]["weight_bytes"]
    assert held == (whole - 4 * 20) / 2 + 4 * 20 if name != "ROUTED" else held == 4 * 8 * 12 / 2


def test_an_output_that_is_placed_otherwise_than_the_case_says(wrong: dict[str, Any]) -> None:
    result = of(wrong, "CUT_BY_MISTAKE")
    assert (result["status"], result["reason"]) == (
        "SHAPE",
        "output.0 of rank 0 is a DTensor placed as Shard(dim=2, unit=1), where `output` of its Case says Replicate()",
    )


@pytest.mark.parametrize("dtype", ["exact", "float32"])
def test_a_wrong_one_is_explained_by_its_taps_and_parameters(wrong: dict[str, Any], dtype: str) -> None:
    tapped, added = (of(wrong, name, dtype=dtype) for name in ("TAPPED", "ADDED"))
    assert tapped["first_divergence"]["tensor"] == "hidden"
    assert tapped["first_divergence"]["ranks"] == [0, 1]
    assert tapped["put_right"] == "with it put right, the output is right"
    assert added["first_divergence"]["tensor"] == "output.0"
    assert not [note for note in wrong["notes"] if "bug" in note or "failed" in note]


def test_what_cannot_be_placed_is_refused_before_any_rank_starts(tmp_path: Path) -> None:
    harness = harness_of(tmp_path, CASES)
    lists = (["--case", f"{harness.cases}:{name}", "--tp", "4"] for name in ("OTHER_PLAN", "SOME_RANKS"))
    [(code, other), (also, axes)] = harness.run(*lists)
    assert (code, also) == (2, 2)
    assert (
        "the plan of own places up.weight as Shard(dim=1, unit=1), but the sharded module holds a DTensor that is "
        "placed as Shard(dim=0, unit=1): correct one of them, or leave up.weight out of the plan."
    ) in other
    assert (
        "up.weight of own is a DTensor on a mesh of shape [2] with ranks [0, 1]; a mesh of all 4 ranks in their order "
        "is needed, as init_device_mesh(device, (4,)) makes it."
    ) in axes


@pytest.fixture
def group_of_4() -> Iterator[None]:
    with stand_in_group(4, real=True):
        yield


def test_a_tensor_is_read_by_its_placement_and_put_back(group_of_4: None) -> None:
    full, mesh = torch.arange(32.0).view(8, 4), init_device_mesh("cpu", (4,))
    x = DTensor.from_local(full[:, :1], mesh, [Shard(1)], run_check=False)
    assert dtensors.placement_of("x", x) == placements.Shard(1)
    assert torch.equal(dtensors.local(x), full[:, :1])
    again = dtensors.like(full, x)
    assert isinstance(again, DTensor) and again.placements == x.placements
    assert torch.equal(again.to_local(), full[:, :1])
    assert dtensors.placement_of("full", full) is None
    assert dtensors.local(full) is full
    assert dtensors.like(full, full) is full


def test_fused_blocks_that_are_each_cut_by_themselves(group_of_4: None) -> None:
    full, mesh = torch.arange(16.0).view(16, 1), init_device_mesh("cpu", (4,))
    x = distribute_tensor(full, mesh, [_StridedShard(0, split_factor=2)], src_data_rank=None)
    strided = dtensors.placement_of("x", x)
    assert strided == StridedShard(0, 2) and torch.equal(dtensors.local(x), strided.shard(full, 0, 4))
    assert dtensors.Placed.of(strided).placement == strided
    assert dtensors.agree(StridedShard(-2, 2), strided, ndim=2, size=4)
    assert not dtensors.agree(StridedShard(0, 4), strided, ndim=2, size=4)


def test_a_dimension_of_length_1_does_not_matter(group_of_4: None) -> None:
    mesh = init_device_mesh("cpu", (1, 4))
    x = DTensor.from_local(torch.zeros(2, 4), mesh, [Replicate(), Sum()], run_check=False)
    assert dtensors.placement_of("x", x) == placements.Partial()


@pytest.mark.parametrize("average", [True, False])
def test_what_is_none_of_our_placements(group_of_4: None, average: bool) -> None:
    mesh = init_device_mesh("cpu", (4,)) if average else dist.device_mesh.DeviceMesh("cpu", [3, 2, 1, 0])
    x = DTensor.from_local(torch.zeros(2), mesh, [Sum("avg" if average else "sum")], run_check=False)
    with pytest.raises(dtensors.DTensorError, match="needed") as caught:
        dtensors.placement_of("x", x)
    assert ("placed as P" in str(caught.value)) == average


def test_placements_agree_if_they_cut_alike() -> None:
    shard = placements.Shard(1)
    assert dtensors.agree(placements.Shard(-1, unit=4), shard, ndim=2, size=4)
    assert dtensors.agree(KVHeads(1, 8), shard, ndim=2, size=4)
    assert not dtensors.agree(KVHeads(1, 2), shard, ndim=2, size=4), "two ranks hold one head"
    assert not dtensors.agree(StridedShard(1, 2), shard, ndim=2, size=4)
    assert not dtensors.agree(placements.Replicate(), shard, ndim=2, size=4)
    assert dtensors.agree(placements.Replicate(), shard, ndim=2, size=1), "one rank holds all"
