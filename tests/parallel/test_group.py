"""The group a module talks to, what is recorded of its calls, and the plan that places its parameters."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from tp_harness.case.case import Case
from tp_harness.case.plan import check_plan, stand_in_group
from tp_harness.case.tried_placements import VALID, PlanError, local_placement
from tp_harness.errors import UsageError
from tp_harness.parallel.collective_recorder import CollectiveRecorder
from tp_harness.parallel.group import Group, TorchGroup, collective, current_group, use_group
from tp_harness.parallel.placements import Placement, PlacementError, Replicate, Shard
from tp_harness.results.result import Collective

X = torch.arange(12.0).view(4, 3)
CALLS: dict[str, Callable[[Group], torch.Tensor]] = {
    "all_reduce": lambda group: group.all_reduce(X),
    "all_gather": lambda group: group.all_gather(X, dim=1),
    "reduce_scatter": lambda group: group.reduce_scatter(X, dim=0),
    "broadcast": lambda group: group.broadcast(X, src=0),
    "all_to_all": lambda group: group.all_to_all(X, split_dim=0, concat_dim=1),
}


@pytest.fixture
def one_gloo_rank(tmp_path: Path) -> Iterator[None]:
    """A real gloo group of one rank."""
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.FileStore(str(tmp_path / "store"), 1))
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("name", CALLS)
def test_a_group_of_one_is_the_identity_and_records_nothing(name: str, one_gloo_rank: None) -> None:
    for group in (Group(), TorchGroup()):
        assert (group.rank, group.size) == (0, 1)
        assert CALLS[name](group) is X
        assert group.take_calls() == ()


@pytest.mark.parametrize("name", CALLS)
def test_a_larger_group_records_kind_size_shape_dtype_and_bytes(name: str, rank_1_of_4: None) -> None:
    group = TorchGroup()
    assert (group.rank, group.size) == (1, 4)
    CALLS[name](group)
    expected = Collective(kind=name, group_size=4, shape=(4, 3), dtype="float32", bytes=48)
    assert group.take_calls() == (expected,)
    assert group.take_calls() == ()  # a new recording was started
    assert str(expected) == f"{name} [4, 3] float32 over 4 ranks"


@pytest.mark.parametrize("name", CALLS)
def test_a_stand_in_records_and_computes_nothing(name: str) -> None:
    group = Group(0, 4)
    with pytest.raises(NotImplementedError):
        CALLS[name](group)
    assert [call.kind for call in group.take_calls()] == [name]


@pytest.mark.parametrize(("rank", "size"), [(1, 1), (-1, 2), (0, 0)])
def test_a_rank_outside_its_group_is_refused(rank: int, size: int) -> None:
    with pytest.raises(ValueError, match=f"rank {rank} is outside a group of size {size}"):
        Group(rank, size)


def test_bytes_are_those_of_the_dtype() -> None:
    sizes = {dtype: collective("all_reduce", 2, (3, 5), dtype).bytes for dtype in (torch.bfloat16, torch.float64)}
    assert sizes == {torch.bfloat16: 30, torch.float64: 120}
    assert collective("all_reduce", 2, (), torch.float32).bytes == 4


def test_the_innermost_group_is_the_ambient_one() -> None:
    outer, inner = Group(0, 2), Group(1, 8)
    with use_group(outer) as entered:
        assert entered is outer is current_group()
        with pytest.raises(ValueError, match="stop"), use_group(inner):
            assert current_group() is inner
            raise ValueError("stop")
        assert current_group() is outer
    assert (current_group().rank, current_group().size) == (0, 1)


def test_the_ambient_group_is_this_threads_own() -> None:
    seen: list[int] = []
    with use_group(Group(0, 8)):
        thread = threading.Thread(target=lambda: seen.append(current_group().size))
        thread.start()
        thread.join()
    assert seen == [1]


def test_without_an_ambient_group_torchs_default_group_is_taken(rank_1_of_4: None) -> None:
    assert (current_group().rank, current_group().size) == (1, 4)
    with use_group(Group(0, 2)):
        assert current_group().size == 2


RANKS = """
import datetime, json, os, sys
import torch, torch.distributed as dist
from tp_harness.parallel.group import TorchGroup

def work(rank, folder):
    store, limit = dist.FileStore(folder + "/store", 3), datetime.timedelta(seconds=60)
    dist.init_process_group("gloo", rank=rank, world_size=3, store=store, timeout=limit)
    group = TorchGroup()
    x = torch.arange(6.0).view(2, 3) + 10 * rank
    done = {
        "all_reduce": group.all_reduce(x.clone()), "all_reduce_strided": group.all_reduce(x.clone().t()),
        "gather_0": group.all_gather(x, 0), "gather_last": group.all_gather(x.t(), -1),
        "scatter": group.reduce_scatter(x, 1), "broadcast": group.broadcast(x.clone(), 2),
    }
    with open(f"{folder}/{rank}.json", "w") as file:
        json.dump({name: value.tolist() for name, value in done.items()}, file)
    dist.destroy_process_group()

ranks = []
for rank in range(3):
    ranks.append(os.fork())
    if not ranks[-1]:
        work(rank, sys.argv[1])
        os._exit(0)
sys.exit(max(os.waitpid(pid, 0)[1] for pid in ranks))
"""


def test_collectives_of_three_gloo_ranks_give_what_they_promise(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", RANKS, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    parts = [torch.arange(6.0).view(2, 3) + 10 * rank for rank in range(3)]
    total = torch.stack(parts).sum(dim=0)
    for rank in range(3):
        expected = {
            "all_reduce": total,
            "all_reduce_strided": total.t(),
            "gather_0": torch.cat(parts),
            "gather_last": torch.cat([x.t() for x in parts], dim=-1),
            "scatter": total[:, rank : rank + 1],
            "broadcast": parts[2],
        }
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == {k: v.tolist() for k, v in expected.items()}


def test_what_the_recorder_sees_is_what_the_group_says(rank_1_of_4: None) -> None:
    group = TorchGroup()
    with CollectiveRecorder() as recorder:
        for name in ("all_reduce", "all_gather", "broadcast"):
            CALLS[name](group)
    assert tuple(recorder.calls) == group.take_calls()
    dist.all_reduce(torch.zeros(1))
    assert len(recorder.calls) == 3  # it listens inside its block only


def linear_case(rows_of: Callable[[int], int], plan: dict[str, Placement], name: str = "weight") -> Case:
    """A matrix [8, 4] of which a rank of the ambient group holds rows_of(size) rows under `name`."""

    def sharded() -> nn.Module:
        module = nn.Module()
        module.register_parameter(name, nn.Parameter(torch.zeros(rows_of(current_group().size), 4)))
        return module

    def reference() -> nn.Module:
        return nn.Linear(4, 8, bias=False)

    return Case(name="mine", reference=reference, sharded=sharded, inputs=lambda _: (), plan=plan)


SHAPES = {"weight": (8, 4)}
PLANS: dict[str, tuple[Case, int, str]] = {
    "forgotten": (
        linear_case(lambda size: 8 // size, {}),
        4,
        "the plan of mine does not say how weight is placed: full [8, 4], local [2, 4] on 4 ranks. "
        f"Give it one of {VALID}.",
    ),
    "other_dimension": (
        linear_case(lambda size: 8 // size, {"weight": Shard(1)}),
        4,
        "mine: Shard(dim=1, unit=1) makes shards [8, 1] of weight [8, 4], but the sharded module holds [2, 4] "
        "on each of 4 ranks.",
    ),
    "not_in_module": (
        linear_case(lambda size: 8 // size, {"weight": Shard(0), "wieght": Shard(0)}),
        4,
        "the plan of mine places wieght, which the sharded module does not have.",
    ),
    "not_in_reference": (
        linear_case(lambda size: 8, {}, name="scale"),
        4,
        "mine: the sharded module has a parameter scale that the reference does not have; the reference has weight.",
    ),
    "does_not_divide": (
        linear_case(lambda size: 8 // size, {"weight": Shard(0)}),
        3,
        "weight of mine cannot be placed as Shard(dim=0, unit=1): dimension 0 of shape (8, 4) does not divide over 3 "
        "ranks.",
    ),
}


@pytest.mark.parametrize("name", PLANS)
def test_a_wrong_plan_is_refused_before_any_rank_starts(name: str) -> None:
    case, tp, text = PLANS[name]
    kind = PlacementError if name == "does_not_divide" else PlanError
    with stand_in_group(tp, real=False), pytest.raises(kind, match=f"^{re.escape(text)}$") as caught:
        check_plan(case, SHAPES, tp)
    assert isinstance(caught.value, UsageError)
    assert (caught.value.of == "mine") == text.startswith("mine: ")


@pytest.mark.parametrize("tp", [1, 2, 4, 8])
def test_a_right_plan_is_accepted_at_every_degree(tp: int) -> None:
    with stand_in_group(tp, real=False):
        check_plan(linear_case(lambda size: 8 // size, {"weight": Shard(0)}), SHAPES, tp)
        check_plan(linear_case(lambda size: 8, {}), SHAPES, tp)  # plainly replicated: no entry is needed
    assert local_placement(linear_case(lambda size: 8, {}), "weight", (8, 4), (8, 4), tp) == Replicate()
    case = linear_case(lambda size: 8 // size, {"weight": Shard(0)})
    assert local_placement(case, "weight", (8, 4), (8 // tp, 4), tp) == Shard(0)


@pytest.mark.parametrize("real", [False, True])
def test_a_stand_in_group_answers_and_goes_away(real: bool) -> None:
    with pytest.raises(RuntimeError, match="stop"), stand_in_group(8, real=real):
        assert (current_group().rank, current_group().size) == (0, 8)
        assert not real or (dist.get_rank(), dist.get_world_size()) == (0, 8)
        raise RuntimeError("stop")
    assert current_group().size == 1
    assert not dist.is_initialized()
