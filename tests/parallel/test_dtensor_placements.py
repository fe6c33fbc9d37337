"""DTensors are read by their own placements alone: unequal shards, outputs of which the Case says nothing, inputs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import command
import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from tp_harness.case.plan import stand_in_group
from tp_harness.parallel import dtensors, placements
from tp_harness.parallel.placements import same_bits

CASES = """
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from tp_harness import Case
from tp_harness import Shard as Cut

HIDDEN, WIDE, VOCABULARY = 12, 50, 37

class MLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(HIDDEN, WIDE), nn.Linear(WIDE, HIDDEN, bias=False)
        self.head, self.hidden = nn.Linear(HIDDEN, VOCABULARY), nn.Identity()

    def forward(self, x):
        return self.head(self.down(self.hidden(torch.relu(self.up(x)))))

def parallel(module=MLP, **styles):
    def made():
        kept = dict(use_local_output=False)
        all_styles = {
            "up": ColwiseParallel(**kept), "down": RowwiseParallel(), "head": ColwiseParallel(**kept), **styles
        }
        return parallelize_module(module(), init_device_mesh("cpu", (dist.get_world_size(),)), all_styles)
    return made

class Scaled(MLP):
    def forward(self, x):
        y = torch.relu(self.up(x))
        if isinstance(y, DTensor):
            own = y.to_local() * (0.5 if dist.get_rank() == 2 else 1)
            y = DTensor.from_local(own, y.device_mesh, y.placements, run_check=False, shape=y.shape, stride=y.stride())
        return self.head(self.down(self.hidden(y)))

def case(sharded, **fields):
    draw = lambda g: (torch.randn(2, 8, HIDDEN, generator=g),)
    return Case(name="own", reference=MLP, sharded=sharded, taps={"hidden": Cut(-1)}, inputs=draw, **fields)

UNEVEN = case(parallel())
GATHERED = case(parallel(head=ColwiseParallel(output_layouts=Replicate(), use_local_output=False)))
LOCAL = case(parallel(head=ColwiseParallel()), output=Cut(-1, uneven=True))
SAID, UNSAID_LOCAL = case(parallel(), output=Cut(-1, uneven=True)), case(parallel(head=ColwiseParallel()))
WRONG = case(parallel(Scaled))
PADDED = case(parallel(), output=Cut(-1, pad_to="even"))
"""


RIGHT, REJECTED = ("UNEVEN", "GATHERED", "LOCAL", "SAID"), ("WRONG", "PADDED", "UNSAID_LOCAL")


def verified(folder: Path, names: tuple[str, ...], code: int, *given: str) -> dict[str, Any]:
    """The record of a run of these cases."""
    cache = f"import os; os.environ['TORCHINDUCTOR_CACHE_DIR'] = '{folder}'"
    return command.verified(folder, CASES, names, code, *given, patch=cache)


def of(record: dict[str, Any], name: str, dtype: str = "float32") -> dict[str, Any]:
    [found] = [r for r in record["results"] if (r["component"], r["dtype"]) == (f"own ({name})", dtype)]
    return found  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return verified(tmp_path_factory.mktemp("right"), RIGHT, 0, "--tp", "4")


@pytest.fixture(scope="module")
def rejected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return verified(tmp_path_factory.mktemp("no"), REJECTED, 1, "--tp", "4", "--dtype", "exact", "--dtype", "float32")


@pytest.mark.parametrize("name", RIGHT)
def test_it_passes_without_a_plan(right: dict[str, Any], name: str) -> None:
    statuses = [of(right, name, dtype)["status"] for dtype in ("exact", "float32", "bfloat16")]
    assert statuses == ["PROVED", "PASS", "PASS"]
    held = [rank["weight_bytes"] for rank in of(right, name)["ranks"]]
    of_up, of_head = 4 * (12 + 1 + 12), 4 * (12 + 1)
    assert held == [13 * of_up + 10 * of_head] * 3 + [11 * of_up + 7 * of_head]
    assert [control["rejected"] for control in right["controls"]] == [True] * len(right["controls"])


@pytest.mark.parametrize("dtype", ["exact", "float32"])
def test_the_first_wrong_tensor_is_found_by_its_own_placement(rejected: dict[str, Any], dtype: str) -> None:
    result = of(rejected, "WRONG", dtype)
    assert result["status"] == ("DIFFERENT" if dtype == "exact" else "MISMATCH")
    assert (result["first_divergence"]["tensor"], result["first_divergence"]["ranks"]) == ("hidden", [2])
    assert not [note for note in rejected["notes"] if "bug" in note]


def test_what_is_said_must_be_what_it_is(rejected: dict[str, Any]) -> None:
    assert of(rejected, "PADDED")["reason"] == (
        "output.0 of rank 0 is a DTensor placed as Shard(dim=2, unit=1, uneven=True), where `output` of its Case says "
        "Shard(dim=-1, unit=1, pad_to='even')"
    )
    local = of(rejected, "UNSAID_LOCAL")
    assert (local["status"], "shape [2, 8, 10] instead of [2, 8, 37]" in local["reason"]) == ("SHAPE", True)


@pytest.fixture
def group_of_4() -> Iterator[None]:
    with stand_in_group(4, real=True):
        yield


@pytest.mark.parametrize("length", [1, 3, 4, 5, 7, 8])
def test_what_torch_cuts_unevenly_is_read_so(group_of_4: None, length: int) -> None:
    full = torch.arange(2.0 * length).view(2, length)
    x = distribute_tensor(full, init_device_mesh("cpu", (4,)), [Shard(1)], src_data_rank=None)
    placement = dtensors.placement_of("x", x)
    assert placement == placements.Shard(1, uneven=length % 4 != 0)
    assert same_bits(dtensors.local(x), placement.shard(full, 0, 4))
    assert dtensors.Placed.of(placement).placement == placement
    again = dtensors.like(full, x)
    assert again.shape == x.shape and same_bits(dtensors.local(again), dtensors.local(x))
    assert dtensors.agree(placements.Shard(-1, uneven=True), placement, ndim=2, size=4)
    assert not dtensors.agree(placements.Shard(-1, pad_to="even"), placement, ndim=2, size=4)
