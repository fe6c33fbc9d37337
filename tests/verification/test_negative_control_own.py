"""The control of a user's case: anywhere in what ranks load, before `edit`; without one, nothing has passed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from own_runs import run_case
from torch import nn

from tp_harness.case.case import Case
from tp_harness.faults import EVERY, find_fault, injected
from tp_harness.parallel.group import Group, use_group
from tp_harness.results.result import Control, Status
from tp_harness.results.run_record import RunRecord

CASES = '''
from dataclasses import replace
import torch
from torch import nn
from tp_harness import Case, Replicate, Shard
from tp_harness.models.gpt_oss.config import PRESETS
from tp_harness.models.gpt_oss.modules.norm import NeuronGPTOSSRMSNorm
from tp_harness.parallel.group import current_group

class Mix(nn.Module):
    """Every token sees those before it."""

    def __init__(self, ranks=1):
        super().__init__()
        self.up, self.down = nn.Linear(12, 64 // ranks, bias=False), nn.Linear(64 // ranks, 20, bias=False)
        self.bias = nn.Parameter(torch.zeros(20))

    def forward(self, x):
        return self.sum(self.down(torch.relu(self.up(x.cumsum(1))))) + self.bias

    def sum(self, x):
        return x

class Sharded(Mix):
    def __init__(self):
        super().__init__(current_group().size)

    def sum(self, x):
        return current_group().all_reduce(x)

class Backwards(Sharded):
    def forward(self, x):
        return super().forward(x.flip(1))

class Gated(Mix):
    """What is sharded is multiplied by zero."""

    def sum(self, x):
        return 0 * x

class GatedSharded(Sharded):
    def sum(self, x):
        return 0 * super().sum(x)

class Fused(Sharded):
    """Computes with a copy that `edit` makes of what was loaded."""

    def fuse(self):
        self.own = [self.up.weight.clone(), self.down.weight.clone(), self.bias.clone()]

    def forward(self, x):
        up, down, bias = self.own
        return self.sum(torch.relu(x.cumsum(1) @ up.T) @ down.T) + bias

class Hooked(Sharded):
    """The same, made as the state is loaded."""

    def load_state_dict(self, values, **named):
        answer = super().load_state_dict(values, **named)
        self.own = dict(values)
        return answer

    def forward(self, x):
        own = {name: value.to(x.dtype) for name, value in self.own.items()}
        y = torch.relu(x.cumsum(1) @ own["up.weight"].T) @ own["down.weight"].T
        return self.sum(y) + own["bias"]

class Moved(Sharded):
    """The second input is ones on every token."""

    def forward(self, x, by):
        return super().forward(x + by)

class Norm(nn.Module):
    """Nothing is sharded."""

    def __init__(self):
        super().__init__()
        self.scale, self.unused = nn.Parameter(torch.ones(12)), nn.ParameterList(torch.zeros(3) for _ in range(9))

    def forward(self, x):
        return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-5) * self.scale

class Square(nn.Module):
    """Nothing can be loaded."""

    def forward(self, x):
        return x * x

class Rotary(nn.Module):
    """All that it holds is a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("frequencies", 10000.0 ** -torch.linspace(0, 1, 12))

    def forward(self, x):
        return x * torch.cos(torch.arange(x.shape[1], dtype=x.dtype)[:, None] * self.frequencies)

class Faint(nn.Module):
    """What is sharded adds as little as rounding does."""

    def __init__(self, ranks=1):
        super().__init__()
        self.up, self.scale = nn.Linear(12, 64 // ranks, bias=False), nn.Parameter(torch.ones(12))

    def forward(self, x):
        return x * self.scale + 1e-9 * self.sum(self.up(x).sum(-1, keepdim=True))

    def sum(self, x):
        return x

class FaintSharded(Faint):
    def __init__(self):
        super().__init__(current_group().size)

    def sum(self, x):
        return current_group().all_reduce(x)

class Kernel(nn.Module):
    """A part of it has a kernel."""

    def __init__(self):
        super().__init__()
        self.norm = NeuronGPTOSSRMSNorm(replace(PRESETS["tiny"], hidden_size=12))

    def forward(self, x):
        return self.norm(x)

def random(g):
    return (torch.randn(4, 8, 12, generator=g),)

PLAN = {"up.weight": Shard(0), "down.weight": Shard(1)}

def case(sharded, reference=Mix, plan=PLAN, inputs=random, **fields):
    return Case(name="own", reference=reference, sharded=sharded, inputs=inputs, plan=plan, **fields)

RIGHT, HOOKED, GATED = case(Sharded), case(Hooked), case(GatedSharded, Gated)
FUSED = case(Fused, edit=lambda module, group: module.fuse())
ZEROS, ONES = (case(Backwards, inputs=lambda g, f=f: (f(4, 8, 12),)) for f in (torch.zeros, torch.ones))
NORM, SQUARE, ROTARY, KERNEL = (case(x, x, {}, replicated=True) for x in (Norm, Square, Rotary, Kernel))
CUT = case(Square, Square, {}, input_placements=(Shard(1),), output=Shard(1))
MOVED = case(Moved, type("Whole", (Mix,), {"forward": lambda m, x, by: Mix.forward(m, x + by)}),
    inputs=lambda g: (*random(g), torch.ones(4, 8, 1)))
FAINT = case(FaintSharded, Faint, {"up.weight": Shard(0)})
'''


def record_of(tmp_path: Path, name: str, *, degrees: tuple[int, ...] = (1, 2), **fields: object) -> RunRecord:
    """A run of one of the cases on local ranks."""
    return run_case(tmp_path, CASES, name, degrees, **fields)


def rejected(record: RunRecord) -> list[Control]:
    """The controls of a run in which all has passed, and every control was rejected."""
    assert {result.status for result in record.results} == {Status.PASS}, [r.reason for r in record.results]
    assert all(control.rejected for control in record.controls)
    return record.controls


@pytest.mark.parametrize("name", ["RIGHT", "FUSED", "HOOKED"])
def test_a_fault_acts_whatever_becomes_of_what_was_loaded(tmp_path: Path, name: str) -> None:
    found = rejected(record_of(tmp_path, name))
    assert [control.tp for control in found] == [1, 2]
    assert all(control.place.split(" of ")[0] in ("up.weight", "down.weight") for control in found)


@pytest.mark.parametrize(("name", "place"), [("NORM", "scale"), ("SQUARE", "input 0"), ("ROTARY", "frequencies")])
def test_what_is_not_sharded_has_a_control_on_every_rank(tmp_path: Path, name: str, place: str) -> None:
    """The norm's is found among nine parameters that nothing depends on."""
    found = rejected(record_of(tmp_path, name, dtypes=("float32",)))
    assert [(control.tp, control.place) for control in found] == [(tp, f"{place} of every rank") for tp in (1, 2)]


def test_kernels_have_a_control_too(tmp_path: Path) -> None:
    found = rejected(record_of(tmp_path, "KERNEL", dtypes=("float32",), degrees=(1,), kernels="nki"))
    assert [control.place for control in found] == ["norm.scale of every rank"]


def test_a_sharded_input_has_a_control_on_one_rank(tmp_path: Path) -> None:
    found = rejected(record_of(tmp_path, "CUT", degrees=(2, 4), dtypes=("float32",)))
    assert [control.place.partition(" of rank ")[0] for control in found] == ["input 0"] * 2


def test_inputs_of_zeros_are_void_and_named(tmp_path: Path) -> None:
    record = record_of(tmp_path, "ZEROS", dtypes=("float32",))
    assert record.controls == []
    assert {result.status for result in record.results} == {Status.VOID}
    for result in record.results:
        assert result.reason.startswith("no fault put in as a control changes this run (")
        assert "up.weight" in result.reason and "down.weight" in result.reason
        assert result.reason.endswith(
            "; input 0 is 0 everywhere), so that no mistake would show: draw inputs of random numbers of order one "
            "that reach every parameter"
        )


def test_inputs_of_one_number_are_void_although_a_fault_shows(tmp_path: Path) -> None:
    record = record_of(tmp_path, "ONES", dtypes=("float32",))
    assert all(control.rejected for control in record.controls) and len(record.controls) == 2
    assert {(result.status, result.reason) for result in record.results} == {
        (
            Status.VOID,
            "input 0 is 1 everywhere, which hides every exchange of tokens or features: draw inputs of random numbers "
            "of order one that reach every parameter",
        )
    }


def test_one_input_of_one_number_beside_others_is_noted(tmp_path: Path) -> None:
    record = record_of(tmp_path, "MOVED", dtypes=("float32",))
    assert {result.status for result in record.results} == {Status.PASS}
    assert record.notes[-1] == "input 1 is 1 everywhere: an exchange of its elements is unseen"


def test_a_replicated_bias_does_not_speak_for_what_is_sharded(tmp_path: Path) -> None:
    record = record_of(tmp_path, "GATED", dtypes=("float32",))
    assert {result.status for result in record.results} == {Status.VOID}
    assert "bias" not in record.results[0].reason


def test_a_fault_as_faint_as_rounding_is_no_control(tmp_path: Path) -> None:
    """It is not rejected, which is right, and does not say that the verdict accepts what is wrong."""
    record = record_of(tmp_path, "FAINT", dtypes=("float32",), degrees=(2,))
    assert [(result.status, result.reason.partition(" (")[0]) for result in record.results] == [
        (Status.VOID, "no fault put in as a control changes this run")
    ]


def test_without_a_control_that_is_wanted_nothing_is_taken_back(tmp_path: Path) -> None:
    record = record_of(tmp_path, "ZEROS", dtypes=("float32",), fault_control=False)
    assert {result.status for result in record.results} == {Status.PASS}


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)
        self.head.weight = self.table.weight


def loaded(place: str, rank: int, values: dict[str, torch.Tensor]) -> nn.Module:
    """What rank 1 of 2 makes of values that it loads with a fault in them."""
    case = Case(name="tied", reference=Tied, sharded=Tied, inputs=lambda _: ())
    with use_group(Group(1, 2)):
        module = injected("shard-rolled", case, place, rank).sharded()
    module.load_state_dict(values)
    return module


def test_a_parameter_is_spoilt_under_all_its_names_and_on_its_rank_alone() -> None:
    full = torch.arange(24.0).view(6, 4)
    values = {"table.weight": full, "head.weight": full}
    assert torch.equal(
        loaded("table.weight", 1, values).get_parameter("head.weight"), full.flatten().roll(1).view(6, 4)
    )
    assert torch.equal(loaded("table.weight", 0, values).get_parameter("head.weight"), full)
    assert not torch.equal(loaded("head.weight", EVERY, values).get_parameter("table.weight"), full)
    assert torch.equal(full, torch.arange(24.0).view(6, 4)), "what was given is not written to"
    assert find_fault("shard-rolled").spoil is not None
