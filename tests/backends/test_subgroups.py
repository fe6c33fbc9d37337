"""What every backend's groups along the axes of a mesh promise: numbers, bits and what is recorded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from command import PATIENCE
from ladder import options
from rank_tensors import run

from tp_harness.backends import BACKENDS
from tp_harness.judge.gather import read_outputs
from tp_harness.parallel.placements import same_bits
from tp_harness.prepare.prepare import prepare_one
from tp_harness.ranks.rank_report import TensorKey
from tp_harness.results.collective import EVERYWHERE, Collective

AXES = {"a": 2, "b": 1, "c": 4}
PARTS = {  # of 8 ranks, row-major: the last axis differs between neighbours
    "a": [[0, 4], [1, 5], [2, 6], [3, 7]],
    "b": [[0], [1], [2], [3], [4], [5], [6], [7]],
    "c": [[0, 1, 2, 3], [4, 5, 6, 7]],
    "all": [[0, 1, 2, 3, 4, 5, 6, 7]],
}
CASES = """
import torch
from torch import nn
from tp_harness import Case, Replicate, Shard, current_group
from tp_harness.parallel.mesh import Mesh

class Full(nn.Module):
    def __init__(self, ranks=1):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8 // ranks))

    def forward(self, x):
        return (x,) * 20

class Everything(Full):
    def __init__(self):
        group = current_group()
        super().__init__(group.size)
        mesh = Mesh({"a": 2, "b": 1, "c": 4}, group)
        self.groups = [mesh[axis] for axis in "abc"] + [group]

    def forward(self, x):
        x = x * self.weight
        done = []
        for group in self.groups:
            done += [group.all_reduce(x.clone()), group.all_gather(x, 1), group.reduce_scatter(x.clone(), -1),
                     group.broadcast(x.clone(), group.size - 1), group.all_to_all(x, 0, -1)]
        return tuple(done)

EVERYTHING = Case(name="everything", reference=Full, sharded=Everything, plan={"weight": Shard(0)},
                  output=(Replicate(),) * 20, inputs=lambda g: (torch.randn(16, 24, generator=g),))
"""


def expected(xs: Sequence[torch.Tensor], name: str, rank: int) -> list[torch.Tensor]:
    """What the five collectives of a group give to a rank, of every rank's x."""
    members = next(part for part in PARTS[name] if rank in part)
    mine, size = members.index(rank), len(members)
    ours = [xs[member] for member in members]
    total = torch.stack(ours).sum(0)
    sent = [x.chunk(size, 0)[mine] for x in ours]
    return [total, torch.cat(ours, 1), total.chunk(size, -1)[mine], ours[-1], torch.cat(sent, -1)]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("backend", ["gloo", "local", "xla"])
def test_groups_along_the_axes_of_a_mesh_exchange_among_their_members(tmp_path: Path, backend: str) -> None:
    if missing := next(each for each in BACKENDS if each.name == backend).available():
        pytest.skip(missing)
    cases = tmp_path / "cases.py"
    cases.write_text(CASES)
    chosen = options(targets=(("case", 0),), case=f"{cases}:EVERYTHING", degrees=(8,), dtypes=("float32",), draws=1)
    material = prepare_one(chosen).material(tmp_path, lambda _text: None)
    outcome = run(material, 8, backend, tmp_path / "logs", 4 * PATIENCE)
    assert outcome.ok, outcome.message
    job = material.job(8, material.targets)
    (x,) = material.expectations[job.tasks[0].clean].inputs.values()
    xs = list(x * material.checkpoints[0].tensor("weight").view(8, 1, 1))  # each rank has one of the weights
    for rank, output in read_outputs(job, job.tasks[0]).items():
        assert output.report.runs["float32"].finding == ""
        right = [y for name in PARTS for y in expected(xs, name, rank)]
        for i, y in enumerate(right):
            actual = output.tensors[TensorKey("float32", "locked", f"output.{i}")]
            torch.testing.assert_close(actual, y)
            assert same_bits(actual, y) or i % 5 in (0, 2), "only a sum is rounded"
        check_recorded(output.report.runs["float32"].collectives, rank)


def check_recorded(calls: Sequence[Collective], rank: int) -> None:
    """Check that the calls of a rank's groups are recorded with their members; a group of one calls nothing."""
    kinds = ("all_reduce", "all_gather", "reduce_scatter", "broadcast", "all_to_all")
    assert [call.kind for call in calls] == 3 * list(kinds)
    for call, name in zip(calls, ["a"] * 5 + ["c"] * 5 + ["all"] * 5, strict=True):
        members = next(part for part in PARTS[name] if rank in part)
        exchange = call.exchange or EVERYWHERE
        assert call.group_size == len(members)
        assert exchange.members == (() if name == "all" else tuple(members))
        share = 16 * 24 // len(members)
        assert exchange.sends == exchange.receives == ((share,) * len(members) if call.kind == "all_to_all" else ())
        assert exchange.peer == (members[-1] if call.kind == "broadcast" else None)
