"""What gloo's ranks record of a module's own groups, messages and handles, and a handle that nobody waits for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from command import PATIENCE
from ladder import options
from rank_tensors import run

from tp_harness.backends import choose_backend
from tp_harness.judge.gather import read_outputs
from tp_harness.libraries.torch_handles import is_pending, unseen, watch
from tp_harness.models.gpt_oss.config import PRESETS
from tp_harness.prepare.prepare import prepare_one
from tp_harness.results.collective import EVERYWHERE, Collective
from tp_harness.results.result import Result, Status
from tp_harness.results.run_record import open_record
from tp_harness.verification.degrees import verify

CASES = """
import warnings
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import _functional_collectives as functional
from torch.distributed.device_mesh import init_device_mesh
from tp_harness import Case, Shard, current_mesh

warnings.simplefilter("ignore")

class Full(nn.Module):
    def __init__(self, ranks=1):
        super().__init__()
        self.up, self.down = nn.Linear(8, 16 // ranks), nn.Linear(16 // ranks, 8, bias=False)

    def forward(self, x):
        return self.sum(self.down(torch.relu(self.up(x))))

    def sum(self, x):
        return x

class Sharded(Full):
    def __init__(self):
        super().__init__(dist.get_world_size())

    def sum(self, x):
        dist.all_reduce(x)
        return x

class Everything(Sharded):
    def __init__(self):
        super().__init__()
        rank = dist.get_rank()
        self.pair = [dist.new_group([0, 3]), dist.new_group([1, 2])][rank in (1, 2)]
        self.own = init_device_mesh("cpu", (2, 2), mesh_dim_names=("pp", "cp"))
        self.flat = init_device_mesh("cpu", (2, 2))
        self.splits = [[1, 2], [2, 1]][rank // 2], [[1, 2], [2, 1]][rank // 2]  # to and from ranks
        self.left, self.right = (rank - 1) % 4, (rank + 1) % 4

    def sum(self, x):
        rows, four = torch.ones(2, 3), [torch.ones(1, 3) for _ in range(4)]
        dist.all_reduce(rows, group=self.pair)
        dist.all_reduce(rows, group=self.own.get_group("pp"))
        dist.all_reduce(rows, group=self.flat.get_group(1))
        functional.wait_tensor(functional.all_reduce(rows, "sum", self.own["cp"]))
        dist.broadcast(rows, group=current_mesh()["tp"].process_group, group_src=1)
        dist.all_to_all_single(torch.empty(4, 3), torch.ones(4, 3))
        dist.all_to_all_single(torch.empty(3, 3), torch.ones(3, 3), *self.splits, group=self.own.get_group("pp"))
        dist.all_gather_into_tensor(torch.empty(8, 3), rows)
        dist.reduce_scatter_tensor(torch.empty(1, 3), torch.ones(4, 3))
        works = dist.batch_isend_irecv(
            [dist.P2POp(dist.isend, rows, self.right), dist.P2POp(dist.irecv, torch.empty(2, 3), self.left)]
        )
        works += [dist.isend(rows, self.left, tag=7), dist.irecv(torch.empty(2, 3), self.right, tag=7)]
        [work.wait() for work in works]
        with dist._coalescing_manager(async_ops=True) as manager:
            dist.all_reduce(torch.ones(5))
            dist.all_reduce(torch.ones(6))
        manager.wait()
        with dist._coalescing_manager(async_ops=True) as manager:
            dist.all_gather_into_tensor(torch.empty(8, 3), rows)
        manager.wait()
        with dist._coalescing_manager(async_ops=True) as manager:
            dist.reduce_scatter_tensor(torch.empty(1, 3), torch.ones(4, 3))
        manager.wait()
        dist.all_reduce(x, async_op=True).wait()
        return x

class Polled(Sharded):
    def sum(self, x):
        first, work = x.clone(), dist.all_reduce(x, async_op=True)
        dist.all_reduce(first, async_op=True).get_future().wait()
        while not work.is_completed():
            pass
        return x

class Forgets(Sharded):
    def sum(self, x):
        other = dist.all_reduce(torch.ones(3), async_op=True)
        dist.all_reduce(x)
        self.kept = other if dist.get_rank() else other.wait()
        return x

class ForgetsMessages(Sharded):
    def sum(self, x):
        dist.all_reduce(x)
        rank, size = dist.get_rank(), dist.get_world_size()
        if size > 1:
            sent, got = dist.isend(x, (rank + 1) % size), dist.irecv(x.clone(), (rank - 1) % size)
            got.wait()
        return x

def case(sharded, **fields):
    plan = {"up.weight": Shard(0), "up.bias": Shard(0), "down.weight": Shard(1)}
    return Case(name=sharded.__name__, reference=Full, sharded=sharded, plan=plan,
                inputs=lambda generator: (torch.randn(4, 8, generator=generator),), **fields)

EVERYTHING = case(Everything)
ON_MESH = case(Everything, mesh={"ep": 2, "tp": 2})
ON_MESH = __import__("dataclasses").replace(ON_MESH, plan={n: {("ep", "tp"): p} for n, p in ON_MESH.plan.items()})
POLLED, FORGETS, FORGETS_MESSAGES = case(Polled), case(Forgets), case(ForgetsMessages)
"""
PP, CP = (1, 3), (0, 1)  # of rank 1
ALL = ()
RECORDED = [  # by rank 1 of 4: kind, members, axis, shape, peer, tag
    ("all_reduce", (1, 2), "", (2, 3), None, 0),
    ("all_reduce", PP, "ep", (2, 3), None, 0),
    ("all_reduce", CP, "tp", (2, 3), None, 0),
    ("all_reduce", CP, "tp", (2, 3), None, 0),
    ("broadcast", CP, "tp", (2, 3), 1, 0),
    ("all_to_all", ALL, "", (4, 3), None, 0),
    ("all_to_all", PP, "ep", (3, 3), None, 0),
    ("all_gather", ALL, "", (2, 3), None, 0),
    ("reduce_scatter", ALL, "", (4, 3), None, 0),
    ("send", ALL, "", (2, 3), 2, 0),
    ("recv", ALL, "", (2, 3), 0, 0),
    ("send", ALL, "", (2, 3), 0, 7),
    ("recv", ALL, "", (2, 3), 2, 7),
    ("all_reduce", ALL, "", (5,), None, 0),
    ("all_reduce", ALL, "", (6,), None, 0),
    ("all_gather", ALL, "", (2, 3), None, 0),
    ("reduce_scatter", ALL, "", (4, 3), None, 0),
    ("all_reduce", ALL, "", (4, 8), None, 0),
]


def file_of(folder: Path) -> Path:
    path = folder / "cases.py"
    path.write_text(CASES)
    return path


def row(call: Collective) -> tuple[object, ...]:
    known = call.exchange or EVERYWHERE
    return call.kind, known.members, known.axis, call.shape, known.peer, known.tag


def test_all_kinds_of_calls_are_recorded_with_their_members_and_axis(tmp_path: Path) -> None:
    chosen = options(
        targets=(("case", 0),), case=f"{file_of(tmp_path)}:ON_MESH", degrees=(4,), dtypes=("float32",), draws=1
    )
    material = prepare_one(chosen).material(tmp_path, lambda _text: None)
    outcome = run(material, 4, "gloo", tmp_path / "logs", PATIENCE)
    assert outcome.ok, outcome.message
    job = material.job(4, material.targets)
    report = read_outputs(job, job.tasks[0])[1].report.runs["float32"]
    assert [row(call) for call in report.collectives] == RECORDED
    assert report.unawaited == ()


def results(folder: Path, name: str, *dtypes: str, tp: int = 4) -> list[Result]:
    chosen = options(
        targets=(("case", 0),),
        case=f"{file_of(folder)}:{name}",
        degrees=(tp,),
        model=PRESETS["tiny"],
        dtypes=dtypes,
        draws=1,
    )
    record = open_record(folder / "out", command="", options={}, backend="gloo", blind_spots="")
    try:
        verify(chosen, choose_backend("gloo"), record, lambda _step: None)
    finally:
        record.release()
    return list(record.results)


def test_a_module_s_own_mesh_names_the_axes_where_the_case_has_none(tmp_path: Path) -> None:
    (result,) = results(tmp_path, "EVERYTHING", "float32")
    assert result.status is Status.PASS, result.reason
    named = [row(call)[1:3] for call in result.ranks[1].collectives[:5]]
    assert named == [((1, 2), ""), (PP, "pp"), (CP, ""), (CP, "cp"), (ALL, "")]


def test_handles_that_are_waited_for_in_any_way_are_no_finding(tmp_path: Path) -> None:
    assert {r.dtype: r.status for r in results(tmp_path, "POLLED", "float32", "exact")} == {
        "float32": Status.PASS,
        "exact": Status.PROVED,
    }


FORGOTTEN = {
    "FORGETS": (
        "rank 1: all_reduce [3] float32 over 4 ranks, issued at cases.py:80 in sum, has a handle that nobody waited "
        "for: call its wait() before the forward ends"
    ),
    "FORGETS_MESSAGES": (
        "rank 0: send [4, 8] float32 over 4 ranks to rank 1, issued at cases.py:90 in sum, has a handle that nobody "
        "waited for: call its wait() before the forward ends"
    ),
}


@pytest.mark.parametrize("name", FORGOTTEN)
def test_a_handle_that_nobody_waited_for_is_a_finding(tmp_path: Path, name: str) -> None:
    for result in results(tmp_path, name, "float32", "exact"):
        assert result.status in (Status.MISMATCH, Status.DIFFERENT), result.reason
        schedule = next(check for check in result.checks if check.name == "schedule")
        assert (schedule.passed, schedule.detail) == (False, FORGOTTEN[name])


@pytest.mark.parametrize("way", ["wait", "synchronize", "get_future", "result", "is_completed"])
def test_every_way_to_wait_counts_and_what_the_harness_asks_does_not(way: str, tmp_path: Path) -> None:
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=store)
    work = torch.distributed.all_reduce(torch.ones(2), async_op=True)
    assert not is_pending(work)
    watch(work)
    assert is_pending(work)
    while not unseen("is_completed", work):
        pass
    assert is_pending(work)
    getattr(work, way)()
    assert not is_pending(work)
    torch.distributed.destroy_process_group()
