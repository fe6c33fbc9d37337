"""Placements along the axes of a mesh: what they cut, how they join, and which replicas they compare."""

from __future__ import annotations

import re
from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tp_harness.parallel.on_mesh import OnMesh, added, holder, on_mesh, owners
from tp_harness.parallel.placements import (
    KVHeads,
    Partial,
    Placement,
    ReplicaError,
    Replicate,
    Shard,
    StridedShard,
    same_bits,
)

AXES = {"dp": 2, "ep": 2, "tp": 4}
RANKS = 16
FULL = torch.arange(16 * 16.0).view(16, 16)
CUTS = (Replicate(), Shard(0), Shard(1, unit=2), StridedShard(0, 2), KVHeads(1, 2, unit=2), Partial())


def placed(**along: Placement) -> Placement:
    return on_mesh(AXES, {(axis,): placement for axis, placement in along.items()})


def test_each_axis_cuts_what_the_one_before_it_has_left() -> None:
    shards = placed(tp=Shard(1), ep=Shard(0)).split(FULL, RANKS)
    for rank, shard in enumerate(shards):
        dp, ep, tp = rank // 8, rank // 4 % 2, rank % 4
        assert same_bits(shard, FULL[8 * ep : 8 * ep + 8, 4 * tp : 4 * tp + 4]), dp
    along_0 = placed(tp=Shard(0), dp=Shard(0)).split(FULL, RANKS)
    assert [int(shard[0, 0]) // 16 for shard in along_0] == [0, 2, 4, 6, 0, 2, 4, 6, 8, 10, 12, 14, 8, 10, 12, 14]


def test_several_axes_together_count_as_one_the_last_fastest() -> None:
    heads = on_mesh(AXES, {("ep", "tp"): KVHeads(0, 4)})
    assert [int(shard[0, 0]) // 64 for shard in heads.split(FULL, RANKS)] == 2 * [0, 0, 1, 1, 2, 2, 3, 3]
    swapped = on_mesh(AXES, {("tp", "ep"): Shard(0)})
    assert [int(shard[0, 0]) // 32 for shard in swapped.split(FULL, RANKS)] == 2 * [0, 2, 4, 6, 1, 3, 5, 7]


@settings(deadline=None)
@given(st.sampled_from(CUTS), st.sampled_from(CUTS), st.sampled_from(CUTS), st.permutations(list(AXES)))
def test_what_it_splits_joins_to_the_same_bits(a: Placement, b: Placement, c: Placement, order: list[str]) -> None:
    placement = on_mesh(AXES, {(axis,): cut for axis, cut in zip(order, (a, b, c), strict=True)})
    full = torch.randn(64, 64, generator=torch.Generator().manual_seed(3))
    assert same_bits(placement.join(placement.split(full, RANKS)), full)


@pytest.mark.parametrize("axes", list(permutations(AXES)))
def test_together_or_one_by_one_equal_slices_are_the_same(axes: tuple[str, ...]) -> None:
    for whole, one_by_one in zip(
        on_mesh(AXES, {tuple(AXES): Shard(0)}).split(FULL, RANKS),
        on_mesh(AXES, {(axis,): Shard(0) for axis in axes}).split(FULL, RANKS),
        strict=True,
    ):
        assert same_bits(whole, one_by_one)


def test_what_needs_no_mesh_is_a_plain_placement() -> None:
    assert placed() == placed(ep=Replicate(), tp=Replicate()) == Replicate()
    assert on_mesh({"ep": 1, "tp": 4}, {("ep",): Shard(0), ("tp",): Shard(1)}) == Shard(1)
    assert on_mesh({"ep": 1, "tp": 4}, {("ep",): Shard(0)}) == Replicate()
    assert on_mesh({"ep": 2, "tp": 2}, {("ep", "tp"): Shard(1)}) == Shard(1)
    assert isinstance(on_mesh({"ep": 2, "tp": 2}, {("tp", "ep"): Shard(1)}), OnMesh)


def test_replicas_that_differ_are_named_by_their_ranks_and_the_index_in_the_shard() -> None:
    placement = placed(ep=Shard(0), tp=KVHeads(1, 2))
    shards = list(placement.split(FULL, RANKS))
    shards[13] = shards[13].clone()
    shards[13][2, 3] = -1
    text = f"rank 13 holds -1.0 at [2, 3] where rank 5 holds {FULL[10, 3]}"
    with pytest.raises(ReplicaError, match=f"^{re.escape(text)}$"):
        placement.join(shards)
    shards[5] = shards[13]  # now only the other half of the tp group differs
    with pytest.raises(ReplicaError, match=r"^rank 5 holds -1.0 at \[2, 3\] where rank 4 holds"):
        placement.join(shards)


def test_every_replica_is_compared() -> None:
    placement = placed(tp=Shard(0))
    for rank in range(RANKS):
        shards = [shard.clone() for shard in placement.split(FULL, RANKS)]
        shards[rank][0, 0] = -1
        with pytest.raises(ReplicaError):
            placement.join(shards)


def test_the_first_rank_of_each_replica() -> None:
    assert owners(placed(ep=Shard(0), tp=KVHeads(1, 2)), RANKS) == 2 * [0, 0, 2, 2, 4, 4, 6, 6]
    along_two = owners(on_mesh(AXES, {("tp", "dp"): Shard(0)}), RANKS)
    assert along_two == [*range(4), *range(4), *range(8, 12), *range(8, 12)]
    assert owners(Replicate(), 3) == [0, 0, 0]
    assert owners(KVHeads(0, 2), 4) == [0, 0, 2, 2]
    assert owners(Shard(0), 4) is None


def test_the_first_rank_that_holds_an_element() -> None:
    placement = placed(ep=Shard(0), tp=KVHeads(1, 2))
    assert isinstance(placement, OnMesh)
    assert [holder(placement, FULL.shape, index) for index in ((0, 0), (7, 8), (8, 7), (15, 15))] == [0, 2, 4, 6]


def test_sums_along_several_axes_are_rounded_once() -> None:
    placement = placed(ep=Partial(), tp=Partial())
    parts = [torch.tensor([value]).bfloat16() for value in (256.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0)]
    assert placement.join(parts * 2).item() == 258.0  # 256 + 1 is 256 in bfloat16
    along_one = placed(ep=Partial(), tp=Shard(0))
    assert same_bits(along_one.join(along_one.split(FULL, RANKS)), FULL)


def test_what_ranks_hold_after_the_sums() -> None:
    placement = placed(ep=Partial(), tp=Shard(0))
    shards = [torch.full((4,), float(rank)) for rank in range(RANKS)]
    then, sums = added(placement, shards, lambda parts: torch.stack(list(parts)).sum(0))
    assert then == placed(tp=Shard(0))
    assert [int(shard[0]) for shard in sums] == [4, 6, 8, 10, 4, 6, 8, 10, 20, 22, 24, 26, 20, 22, 24, 26]
    assert added(placed(ep=Partial(), tp=Partial(), dp=Partial()), shards, lambda parts: parts[0])[0] == Replicate()
    for other in (Partial(), placed(tp=Shard(0))):
        assert added(other, shards, lambda parts: parts[0]) == (other, shards)


def test_a_message_names_the_axes() -> None:
    assert str(placed(ep=Shard(0), tp=KVHeads(1, 2))) == (
        "{ep: Shard(dim=0, unit=1), tp: KVHeads(dim=1, num_heads=2, unit=1)} on dp 2 x ep 2 x tp 4"
    )


@pytest.mark.parametrize("length", [5, 8, 9, 13])
def test_padding_along_two_axes_is_left_out_and_named(length: int) -> None:
    padded = placed(ep=Shard(0, pad_to="even"), tp=Shard(0, pad_to="even"))
    full = torch.arange(float(length)) + 1
    shards = padded.split(full, RANKS)
    assert same_bits(padded.fitted(full.shape).join(shards), full)
    assert all(torch.equal(padded.padding(full.shape, rank, RANKS), shards[rank] == 0) for rank in range(RANKS))
    assert placed(ep=Shard(0)).padding((8,), 0, RANKS) is None


def test_padding_that_a_module_relies_on_is_so_along_an_axis_too() -> None:
    assert placed(ep=Shard(0, pad_to="even"), tp=Shard(1)).inert
    assert not placed(ep=Shard(0, pad_to="even", inert=False), tp=Shard(1)).inert
