"""Functions that a user gives and that raise, or give what is no tensor: one sentence says whose, where and what."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from command import IN_FLOATS, Harness

CASES = """
import os
import torch
from torch import nn
from tp_harness import Case
from tp_harness.parallel.placements import Placement

class Mute(ArithmeticError):
    def __str__(self):
        raise TypeError("nothing to say")

def endless():
    return endless()

def fail():
    how = os.environ["FAILS_BY"]
    if how == "endless":
        endless()
    raise {"lines": ValueError("no,\\n\\n  because of this"), "exit": SystemExit(7), "mute": Mute(1)}[how]

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(12, 20)

    def forward(self, x):
        return self.linear(x)

class Fails(Net):
    def __init__(self, at):
        super().__init__()
        self.at = at

    def forward(self, x):
        self.fail("forward")
        return super().forward(x)

    def state_dict(self, *args, **kwargs):
        self.fail("state_dict")
        return super().state_dict(*args, **kwargs)

    def load_state_dict(self, *args, **kwargs):
        self.fail("load_state_dict")
        return super().load_state_dict(*args, **kwargs)

    def get_extra_state(self):
        self.fail("get_extra_state")
        return {"amax": 1.0}

    def set_extra_state(self, state):
        self.fail("set_extra_state")
        assert state == {"amax": 1.0}

    def fail(self, at):
        if at == self.at:
            fail()

class Own(Placement):
    def __init__(self, at="", gives=None):
        self.at, self.gives = at, gives

    def __repr__(self):
        return "Own()"

    def shard(self, full, rank, size):
        if self.at == "shard":
            return fail() if self.gives is None else self.gives
        return full

    def join(self, shards):
        if self.at == "join":
            return fail() if self.gives is None else self.gives
        if self.at == "late" and shards[0].dtype is torch.float32:  # the oracle's outputs are float64
            fail()
        return shards[0]

def case(reference=Net, sharded=Net, inputs=lambda g: (torch.randn(2, 16, 12, generator=g),), **fields):
    return Case(name="odd", reference=reference, sharded=sharded, inputs=inputs, replicated=True, **fields)

AT = ("forward", "state_dict", "load_state_dict", "get_extra_state", "set_extra_state", "nothing")
REFERENCES, RANKS = ({at: case(**{side: lambda at=at: Fails(at)}) for at in AT} for side in ("reference", "sharded"))
REFERENCE_forward, REFERENCE_state_dict, REFERENCE_load_state_dict, *_ = REFERENCES.values()
*_, REFERENCE_get_extra_state, REFERENCE_set_extra_state, _ = REFERENCES.values()
RANK_forward, RANK_state_dict, RANK_load_state_dict, *_ = RANKS.values()
EXTRA = case(lambda: Fails(""), lambda: Fails(""))
REFERENCE, SHARDED, INPUTS = (case(**{name: lambda *_: fail()}) for name in ("reference", "sharded", "inputs"))
IN_DTYPE, COLLECTIVES, EDIT = (case(**{name: lambda *_: fail()}) for name in ("in_dtype", "collectives", "edit"))
LATE = case(output=Own("late"))
SHARD = case(plan={"linear.weight": Own("shard")})
INPUT, OUTPUT = case(input_placements=(Own("shard"),)), case(output=Own("join"))
NO_TENSOR, NO_JOIN, NO_SHAPE = (
    case(plan={"linear.weight": Own("shard", 5)}),
    case(output=Own("join", [1])),
    case(output=Own("join", torch.ones(3))),
)
NO_MODULE, NO_RANK, NO_CAST = case(int), case(sharded=int), case(in_dtype=lambda *_: None)
"""
WHAT = {
    "REFERENCE": "reference of odd, called without arguments, raised ",
    "SHARDED": "sharded of odd, called without arguments at tp 2, raised ",
    "INPUTS": "inputs of odd, called with a torch.Generator, raised ",
    "IN_DTYPE": "in_dtype of odd, called with the reference and torch.float64, raised ",
    "COLLECTIVES": "collectives of odd, called with 2, raised ",
    "SHARD": "shard of Own(), called for linear.weight of odd [20, 12], raised ",
    "INPUT": "shard of Own(), called for input 0 of odd [2, 16, 12], raised ",
    "OUTPUT": "join of Own(), called with output 0 of odd [2, 16, 20] in 2 shards, raised ",
    "REFERENCE_forward": "reference of odd, called with its inputs in float64, raised ",
    "REFERENCE_state_dict": "state_dict of the reference of odd raised ",
    "REFERENCE_get_extra_state": "state_dict of the reference of odd raised ",
    "REFERENCE_set_extra_state": "load_state_dict of the reference of odd raised ",
    "REFERENCE_load_state_dict": "load_state_dict of the reference of odd raised ",
    "RANK_state_dict": "state_dict of the sharded module of odd raised ",
}
SAID = {
    "lines": r"in fail: .*ValueError: no, \| because of this",
    "exit": r"in fail: .*SystemExit: 7",
    "mute": r"in fail: .*Mute: \(no message: its __str__ raised TypeError\)",
    "endless": r"in endless: .*RecursionError: maximum recursion depth exceeded",
}


@pytest.fixture
def harness(tmp_path: Path) -> Harness:
    harness = Harness(tmp_path)
    harness.cases.write_text(CASES)
    return harness


def answers(
    harness: Harness, *names: str, how: str = "lines", dtypes: Sequence[str] = IN_FLOATS
) -> dict[str, tuple[int, str]]:
    """Exit code and text on stderr of each Case, by name."""
    lists = [["--case", f"{harness.cases}:{name}", "--tp", "2", "--draws", "1", *dtypes] for name in names]
    patch = f"import os; os.environ['FAILS_BY'] = {how!r}"
    return dict(zip(names, harness.run(*lists, patch=patch), strict=True))


@pytest.mark.parametrize("how", SAID)
def test_what_a_function_raises_is_said_before_any_rank_starts(harness: Harness, how: str) -> None:
    dtypes = () if how == "lines" else IN_FLOATS  # all of them by default
    for name, (code, text) in answers(harness, *WHAT, how=how, dtypes=dtypes).items():
        assert (code, text.count("\n")) == (2, 1), text
        assert re.match(rf"tp-harness: cases\.py:\d+ {SAID[how]}", text), text
        assert WHAT[name] in text
        assert text.endswith(" (before any rank started).\n")
    assert not list(harness.out.glob("*")), "there is no run"


def test_what_is_no_tensor_or_module_is_named(harness: Harness) -> None:
    assert {name: text for name, (_, text) in answers(harness, *NOTHING).items()} == {
        name: f"tp-harness: {text}\n" for name, text in NOTHING.items()
    }


NOTHING = {
    "NO_TENSOR": "shard of Own() returns a int for linear.weight of odd; a tensor is needed.",
    "NO_JOIN": "join of Own() returns a list for output 0 of odd; a tensor is needed.",
    "NO_SHAPE": "join of Own() makes [3] of the shards of output 0 of odd [2, 16, 20]: it must undo what shard does.",
    "NO_MODULE": "reference of odd makes a int; a torch.nn.Module is needed.",
    "NO_RANK": "sharded of odd makes a int; a torch.nn.Module is needed.",
    "NO_CAST": "in_dtype of odd returns a NoneType; a module is needed.",
}


ON_RANKS = {
    "EDIT": "edit of odd",
    "RANK_forward": "forward of odd in DTYPE",
    "RANK_load_state_dict": "load_state_dict of the sharded module of odd",
}


def test_what_a_function_raises_on_a_rank_is_said_with_its_place(harness: Harness) -> None:
    by_lines = "import os; os.environ['FAILS_BY'] = 'lines'"
    assert harness.code(*harness.named(ON_RANKS), "--tp", "2", "--draws", "1", patch=by_lines) == 3
    results = harness.record()["results"]
    assert {result["component"] for result in results} == {f"odd ({name})" for name in ON_RANKS}
    for result in results:
        assert result["status"] == "CRASH"
        what = ON_RANKS[result["component"].removeprefix("odd (").removesuffix(")")]
        call = what.replace("DTYPE", result["dtype"])
        said = (
            rf"rank \d of 2 failed with ValueError: no, \| because of this \({call}; cases\.py:\d+ in fail\); its log"
        )
        assert re.search(said, result["reason"]), result["reason"]


def test_extra_state_is_no_parameter_and_is_loaded(harness: Harness) -> None:
    assert answers(harness, "EXTRA") == {"EXTRA": (0, "")}
    held = harness.record()["results"][0]["checks"][0]["detail"]
    assert held == f"the shards join to {4 * (12 * 20 + 20):,} bytes of checkpoint"


@pytest.mark.parametrize("how", ["lines", "exit"])
def test_what_a_function_raises_when_outputs_are_judged_is_its_own_too(harness: Harness, how: str) -> None:
    [(code, text)] = answers(harness, "LATE", how=how).values()
    assert code == 2
    assert re.match(rf"tp-harness: cases\.py:\d+ {SAID[how]}\.\n$", text), text
    assert "join of Own(), called with 2 outputs of shape [2, 16, 20], raised " in text
