"""Where the control of a user's case can be put in, in which order, and inputs on which little can show."""

from __future__ import annotations

from random import Random

import torch

from tp_harness.case.calls import Calls
from tp_harness.faults import EVERY
from tp_harness.parallel.placements import Placement, Replicate, Shard
from tp_harness.prepare.control_places import Places, flat_inputs

PLACED: dict[str, Placement] = {"a": Shard(0), "b": Replicate(), "c": Shard(1), "table": Shard(0)}


def named(*draws: tuple[torch.Tensor, ...]) -> list[dict[str, torch.Tensor]]:
    """The inputs of each draw by name."""
    return [Calls.of(draw).tensors for draw in draws]


def places(**fields: object) -> Places:
    given = {
        "placed": {4: PLACED},
        "fixed": frozenset({"table"}),
        "inputs": {"input 0": Replicate(), "input 1": Shard(0)},
    }
    given |= fields
    return Places(**given)  # type: ignore[arg-type]


def test_every_rank_of_every_sharded_parameter_is_a_place() -> None:
    drawn = places().drawn(4, Random(0))
    assert sorted(drawn) == [(name, rank) for name in ("a", "c") for rank in range(4)]
    assert {name for name, _ in drawn[:2]} == {"a", "c"}, "each name before any comes again"
    assert {tuple(places().drawn(4, Random(seed))) for seed in range(9)} != {tuple(drawn)}


def test_where_no_parameter_is_sharded_every_one_is_a_place_and_then_the_inputs() -> None:
    found = places(placed={4: {"b": Replicate(), "table": Shard(0)}}).drawn(4, Random(0))
    assert sorted(found[:5]) == [("b", EVERY), *(("table", rank) for rank in range(4))]
    assert sorted(found[5:]) == [("input 0", EVERY), *(("input 1", rank) for rank in range(4))]


def test_inputs_that_are_one_number_everywhere() -> None:
    x, one, zero = torch.randn(3, 4), torch.ones(3, 4), torch.zeros(5, dtype=torch.long)
    assert flat_inputs(named((x, one), (x, one))) == (("input 1 is 1 everywhere",), False)
    assert flat_inputs(named((one, zero), (2 * one, zero))) == (
        ("input 0 is 1, 2 everywhere", "input 1 is 0 everywhere"),
        True,
    )
    assert flat_inputs(named((one, torch.tensor(1.0))))[1], "one number alone cannot be exchanged"
    assert flat_inputs(named((one,), (x,))) == ((), False)
    assert flat_inputs(named(())) == ((), False)
