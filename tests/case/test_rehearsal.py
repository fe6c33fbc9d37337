"""A rank's module made before any rank starts: with groups of its own, and where it needs the other ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from command import Harness
from own_mlp import MLP
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from tp_harness.case.case import Case
from tp_harness.case.plan import check_plan, stand_in_group
from tp_harness.case.rehearsal import UnrehearsedError, unrehearsed_note
from tp_harness.case.tried_placements import PlanError
from tp_harness.parallel.placements import Shard

SHAPES = {"weight": (8, 4)}
TP = 4


def made(work: Callable[[], object]) -> Case:
    """A matrix [8, 4] cut by rows, whose constructor does some work first."""

    def sharded() -> nn.Module:
        work()
        return nn.Linear(4, 8 // dist.get_world_size(), bias=False)

    return Case(name="mine", reference=nn.Module, sharded=sharded, inputs=lambda _: (), plan={"weight": Shard(0)})


def summed() -> None:
    x = torch.ones(3)
    dist.all_reduce(x, group=dist.new_group(backend="gloo"))
    if x[0] != TP:
        raise ArithmeticError("there are not as many ranks as there should be")


def gathered() -> None:
    names = [None] * TP
    dist.all_gather_object(names, dist.get_rank())
    assert names == list(range(TP))


def asks_the_backend() -> None:
    assert dist.get_backend() == "gloo"
    assert dist.get_backend(dist.new_group([0, 1])) == "gloo"


def on_a_mesh() -> None:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "model"))
    assert dist.get_world_size(mesh["model"].get_group()) == 2


GROUPS: dict[str, Callable[[], object]] = {
    "default": dist.new_group,
    "gloo": lambda: dist.new_group(list(range(TP)), backend="gloo"),
    "of a device": lambda: dist.new_group([0, 1], backend="cpu:gloo"),
    "of other ranks": lambda: dist.new_group([2, 3], backend="gloo"),
    "subgroups": lambda: dist.new_subgroups(2, backend="gloo"),
    "mesh": on_a_mesh,
    "backend": asks_the_backend,
}


@pytest.mark.parametrize("name", GROUPS)
def test_a_module_may_make_groups(name: str) -> None:
    with stand_in_group(TP, real=True):
        module, placed = check_plan(made(GROUPS[name]), SHAPES, TP)
    assert placed == {"weight": Shard(0)}
    assert module.get_parameter("weight").shape == (2, 4)
    assert not dist.is_initialized()
    with pytest.raises(ValueError, match="not been initialized"):
        dist.get_backend()  # torch's own again


def asks_the_store() -> None:
    dist.distributed_c10d._get_default_store().get("there")


def refused() -> None:
    dist.all_reduce(torch.ones(1))
    raise ValueError("2 | 3 ranks.\nThe first line says it.")


def test_the_first_line_of_a_reason_is_said_whole() -> None:
    with stand_in_group(TP, real=True), pytest.raises(UnrehearsedError, match=r"^ValueError: 2 \| 3 ranks$"):
        check_plan(made(refused), SHAPES, TP)


@pytest.mark.parametrize("work", [summed, gathered, asks_the_store])
def test_what_needs_the_other_ranks_is_not_judged_before_they_start(work: Callable[[], object]) -> None:
    with stand_in_group(TP, real=True), pytest.raises(UnrehearsedError) as caught:
        check_plan(made(work), SHAPES, TP)
    assert "\n" not in str(caught.value)
    note = unrehearsed_note({2: str(caught.value), 8: "another reason"})
    assert note.startswith(
        f"the sharded module was not tried before the ranks at tp 2, 8 ({caught.value}): it may need "
    )


def test_what_fails_by_itself_is_refused() -> None:
    def fails() -> None:
        dist.new_group(backend="gloo")
        raise ArithmeticError("no shards today")

    with stand_in_group(TP, real=True), pytest.raises(ArithmeticError):
        check_plan(made(fails), SHAPES, TP)
    mistaken = replace(made(GROUPS["gloo"]), plan={"wieght": Shard(0)})
    with stand_in_group(TP, real=True), pytest.raises(PlanError, match="which the sharded module does not have"):
        check_plan(mistaken, SHAPES, TP)


CASES = (
    MLP
    + '''
class Sharded(MLP):
    """It makes sure that all ranks are here, and sums in a group of its own."""

    def __init__(self):
        size = dist.get_world_size()
        super().__init__(size)
        self.group = dist.new_group(list(range(size)), backend="gloo")
        here = torch.ones(1)
        dist.all_reduce(here, group=self.group)
        if here != size:
            raise RuntimeError(f"{int(here)} ranks are here instead of {size}")

    def reduce(self, x):
        dist.all_reduce(x, group=self.group)
        return x

class Forgetful(Sharded):
    def reduce(self, x):
        return x

class Keeps(MLP):
    """It uses a group that a library has made."""

    def __init__(self):
        import library
        group, size = library.group()
        super().__init__(size)
        self.group = group

    def reduce(self, x):
        dist.all_reduce(x, group=self.group)
        return x

def case(sharded, plan=("up.weight", "up.bias"), **fields):
    plan = {name: Shard(0) for name in plan} | {"down.weight": Shard(1)}
    draw = lambda g: (torch.randn(2, 16, 12, generator=g),)
    return Case(name="own", reference=MLP, sharded=sharded, plan=plan, inputs=draw, **fields)

KEEPS, RIGHT, WRONG, FORGOTTEN = case(Keeps), case(Sharded), case(Forgetful), case(Sharded, ("up.weight",))
MISNAMED, MISTAPPED = case(Sharded, ("up.weight", "up.bais")), case(Sharded, taps={"upp": Shard(-1)})
'''
)
LIBRARY = """
import functools
import torch.distributed as dist

@functools.cache
def group():
    made = dist.new_group(backend="gloo")
    return made, dist.get_world_size(made)
"""
ENDS = {
    "RIGHT": (0, "PASS", ""),
    "WRONG": (1, "MISMATCH", "output.0"),
    "FORGOTTEN": (3, "CRASH", "the plan of own does not say how up.bias is placed: full [64], local [32] on 2 ranks."),
    "MISNAMED": (3, "CRASH", "the plan of own places up.bais, which the sharded module does not have."),
}


@pytest.mark.parametrize("name", ENDS)
def test_the_ranks_find_what_the_rehearsal_would_have_found(tmp_path: Path, name: str) -> None:
    harness, (code, status, reason) = Harness(tmp_path), ENDS[name]
    harness.cases.write_text(CASES)
    given = ("--case", f"{harness.cases}:{name}", "--tp", "2", "--draws", "1", "--dtype", "float32")
    assert harness.code(*given) == code
    record = harness.record()
    [result] = record["results"]
    assert result["status"] == status
    assert reason in result["reason"]
    assert sum("RuntimeError: 1 ranks are here instead of 2" in note for note in record["notes"]) == 1


def test_a_group_that_is_kept_in_the_process_is_right_at_the_next_degree(tmp_path: Path) -> None:
    harness = Harness(tmp_path)
    harness.cases.write_text(CASES)
    harness.cases.with_name("library.py").write_text(LIBRARY)
    given = ("--case", f"{harness.cases}:KEEPS", "--tp", "2,4", "--draws", "1", "--dtype", "float32")
    assert harness.code(*given) == 0
    assert harness.statuses() == [("own", 2, "float32", "PASS"), ("own", 4, "float32", "PASS")]
    where = "was not tried before the ranks at tp 4 (PlanError: own: "
    [note] = [note for note in harness.record()["notes"] if where in note]
    assert note.endswith("what is wrong with it or its plan ends the ranks instead")
