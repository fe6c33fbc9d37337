"""Placements: join(split(x)) is x bit for bit, every rank holds the right part, and wrong cuts are noticed."""

from __future__ import annotations

import re

import pytest
import torch
from bits import DTYPES, LAYOUTS, lay_out, random_bits
from hypothesis import given, settings
from hypothesis import strategies as st

from tp_harness.errors import UsageError
from tp_harness.parallel.placements import (
    KVHeads,
    Partial,
    Placement,
    PlacementError,
    QKVHeads,
    ReplicaError,
    Replicate,
    Shard,
    StridedShard,
    same_bits,
)

SIZES = (1, 2, 3, 5, 7, 8, 32)
SETTINGS = settings(deadline=None, max_examples=25)


@st.composite
def cuts(draw: st.DrawFn, kind: str) -> tuple[Placement, tuple[int, ...], int, tuple[int, ...]]:
    """(placement, full shape, size, shape of every shard), of one kind of placement."""
    size = draw(st.sampled_from(SIZES))
    shape = draw(st.lists(st.integers(0, 3), min_size=1, max_size=3))
    dim = draw(st.integers(-len(shape), len(shape) - 1))
    each, unit = draw(st.integers(0, 3)), draw(st.integers(1, 3))
    if kind == "replicate":
        return Replicate(), tuple(shape), size, tuple(shape)
    if kind == "shard":
        placement, whole, part = Shard(dim, unit=unit), size * each * unit, each * unit
    elif kind == "strided_shard":
        placement, whole, part = StridedShard(dim, unit), size * each * unit, each * unit
    else:
        heads = draw(st.sampled_from([h for h in range(1, 65) if h % size == 0 or size % h == 0]))
        placement, whole, part = KVHeads(dim, heads, unit=unit), heads * unit, max(1, heads // size) * unit
        if kind == "qkv_heads":
            queries = size * draw(st.integers(1, 3))
            placement, dim = QKVHeads(queries, heads, unit), 0
            whole, part = whole * 2 + queries * unit, part * 2 + queries // size * unit
    full, local = list(shape), list(shape)
    full[dim], local[dim] = whole, part
    return placement, tuple(full), size, tuple(local)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["replicate", "shard", "strided_shard", "kv_heads", "qkv_heads"])
@given(data=st.data(), layout=st.sampled_from(LAYOUTS), seed=st.integers(0, 2**31))
@SETTINGS
def test_joining_what_was_split_gives_the_same_bits(
    kind: str, dtype: str, data: st.DataObject, layout: str, seed: int
) -> None:
    placement, shape, size, local = data.draw(cuts(kind))
    full = random_bits(shape, dtype, seed, layout)
    shards = placement.split(full, size)
    assert [tuple(shard.shape) for shard in shards] == [local] * size
    assert {shard.dtype for shard in shards} == {full.dtype}
    assert same_bits(placement.join(shards), full)


@pytest.mark.parametrize("dtype", DTYPES)
@given(size=st.sampled_from(SIZES), layout=st.sampled_from(LAYOUTS), seed=st.integers(0, 2**31), rows=st.integers(0, 4))
@SETTINGS
def test_partial_gives_finite_values_back_bit_for_bit(dtype: str, size: int, layout: str, seed: int, rows: int) -> None:
    x = random_bits((rows, 3), dtype, seed)
    full = lay_out(torch.where(torch.isfinite(x), x, -0.0) if x.is_floating_point() else x, layout)
    shards = Partial().split(full, size)
    assert [shard.shape for shard in shards] == [full.shape] * size
    assert same_bits(Partial().join(shards), full)


def test_partial_adds_in_float64_and_rounds_once() -> None:
    summands = [torch.tensor([x], dtype=torch.bfloat16) for x in (256.0, 1.0, 1.0)]
    assert Partial().join(summands).item() == 258.0
    assert (summands[0] + summands[1] + summands[2]).item() == 256.0  # what a running bfloat16 sum makes of it


# What each rank holds, in literal numbers of torch.arange(n).
HELD: dict[str, tuple[Placement, int, list[list[int]]]] = {
    "replicate": (Replicate(), 2, [[0, 1], [0, 1]]),
    "shard": (Shard(0), 6, [[0, 1], [2, 3], [4, 5]]),
    "shard-last": (Shard(-1), 4, [[0, 1], [2, 3]]),
    "gate_up_pairs": (Shard(0, unit=2), 8, [[0, 1, 2, 3], [4, 5, 6, 7]]),
    "strided": (StridedShard(0, 2), 8, [[0, 1, 4, 5], [2, 3, 6, 7]]),
    "kv-shared_out": (KVHeads(0, 4), 4, [[0, 1], [2, 3]]),
    "kv-replicated": (KVHeads(0, 2, unit=2), 4, [[0, 1], [0, 1], [2, 3], [2, 3]]),
    "qkv-shared_out": (QKVHeads(4, 2, 1), 8, [[0, 1, 4, 6], [2, 3, 5, 7]]),
    "qkv-replicated": (QKVHeads(4, 2, 1), 8, [[0, 4, 6], [1, 4, 6], [2, 5, 7], [3, 5, 7]]),
    "partial": (Partial(), 2, [[0, 1], [0, 0]]),
}


@pytest.mark.parametrize("name", HELD)
def test_each_rank_holds(name: str) -> None:
    placement, count, held = HELD[name]
    full = torch.arange(count)
    assert [shard.tolist() for shard in placement.split(full, len(held))] == held
    assert [placement.shard(full, rank, len(held)).tolist() for rank in range(len(held))] == held


@pytest.mark.parametrize("placement", [Shard(0), KVHeads(0, 8), Replicate()], ids=["shard", "kv_heads", "replicate"])
def test_shards_are_views_where_the_layout_permits(placement: Placement) -> None:
    full = torch.zeros(8, 3)
    storages = {shard.untyped_storage().data_ptr() for shard in placement.split(full, 8)}
    assert storages == {full.untyped_storage().data_ptr()}


def test_rank_r_holds_kv_head_r_div_4_at_tp_32() -> None:
    heads = torch.arange(8).repeat_interleave(64)
    assert [s.unique().tolist() for s in KVHeads(0, 8, unit=64).split(heads, 32)] == [[r // 4] for r in range(32)]
    fused = torch.cat((torch.arange(64).repeat_interleave(64), heads + 100, heads + 200))
    for rank, shard in enumerate(QKVHeads(64, 8, 64).split(fused, 32)):
        assert shard.unique().tolist() == [2 * rank, 2 * rank + 1, 100 + rank // 4, 200 + rank // 4]
        assert len(shard) == 4 * 64


def test_a_modulo_kv_map_is_another_placement_and_is_noticed() -> None:
    full = torch.arange(8)
    wrong = [full[rank % 8].view(1) for rank in range(32)]
    right = KVHeads(0, 8).split(full, 32)
    assert sum(same_bits(a, b) for a, b in zip(wrong, right, strict=True)) == 4  # ranks 0, 9, 18, 27
    with pytest.raises(ReplicaError, match=r"rank 1 holds 1 at \[0\] where rank 0 holds 0"):
        KVHeads(0, 8).join(wrong)


@pytest.mark.parametrize("size", [2, 4, 8])
def test_a_contiguous_cut_of_fused_qkv_is_another_placement(size: int) -> None:
    placement, full = QKVHeads(16, 8, 2), torch.arange(64)
    assert not same_bits(placement.join(Shard(0).split(full, size)), full)
    assert not same_bits(Shard(0).join(placement.split(full, size)), full)


def test_torn_gate_up_pairs_are_refused_or_another_placement() -> None:
    full = torch.arange(6)  # three pairs over two ranks
    assert [s.tolist() for s in Shard(0).split(full, 2)] == [[0, 1, 2], [3, 4, 5]]  # tears the pair (2, 3)
    with pytest.raises(PlacementError, match="does not divide over 2 ranks in units of 2"):
        Shard(0, unit=2).split(full, 2)
    pairs = torch.arange(8)  # interleaved, cut as if it were [gate | up]
    assert not same_bits(Shard(0, unit=2).join(StridedShard(0, 2).split(pairs, 2)), pairs)


REFUSED: dict[str, tuple[Placement, tuple[int, ...], int, str]] = {
    "uneven": (Shard(1), (2, 6), 4, "dimension 1 of shape (2, 6) does not divide over 4 ranks"),
    "units": (Shard(0, unit=4), (8,), 4, "dimension 0 of shape (8,) does not divide over 4 ranks in units of 4"),
    "no_such_dimension": (Shard(2), (4, 4), 2, "a tensor of shape (4, 4) has no dimension 2 to shard"),
    "no_such_negative": (Shard(-3), (4, 4), 2, "a tensor of shape (4, 4) has no dimension -3 to shard"),
    "scalar": (Shard(0), (), 1, "a tensor of shape () has no dimension 0 to shard"),
    "stride": (StridedShard(0, 3), (8,), 2, "dimension 0 of shape (8,) does not divide over 2 ranks with stride 3"),
    "kv": (KVHeads(0, 8), (8,), 12, "8 KV heads do not divide over 12 ranks: one number must divide the other"),
    "qkv_rows": (
        QKVHeads(4, 2, 8),
        (32, 5),
        2,
        "QKVHeads(num_attention_heads=4, num_key_value_heads=2, head_dim=8) needs 64 rows; "
        "the tensor has shape (32, 5)",
    ),
    "qkv_queries": (
        QKVHeads(4, 1, 2),
        (12,),
        8,
        "dimension 0 of shape (8,) does not divide over 8 ranks in units of 2",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_tensor_that_cannot_be_split_is_refused_in_one_sentence(name: str) -> None:
    placement, shape, size, text = REFUSED[name]
    with pytest.raises(PlacementError, match=f"^{re.escape(text)}$") as caught:
        placement.split(torch.zeros(shape), size)
    assert isinstance(caught.value, UsageError)


def test_shard_and_replicate_are_those_of_torch() -> None:
    """torch.distributed as each of four ranks in turn, without the others."""
    from torch.distributed import tensor as dt
    from torch.testing._internal.distributed.fake_pg import FakeStore

    full = random_bits((8, 6, 4), "float32", seed=0)
    pairs = [(Shard(0), dt.Shard(0)), (Shard(-1), dt.Shard(2)), (Replicate(), dt.Replicate())]
    for rank in range(4):
        torch.distributed.init_process_group("fake", rank=rank, world_size=4, store=FakeStore())
        try:
            mesh = dt.init_device_mesh("cpu", (4,))
            for ours, theirs in pairs:
                local = dt.distribute_tensor(full, mesh, [theirs], src_data_rank=None).to_local()
                assert same_bits(ours.shard(full, rank, 4), local)
        finally:
            torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    "kind, numbers", [(Shard, (0, 0)), (StridedShard, (0, 0)), (KVHeads, (0, 0)), (QKVHeads, (4, 2, -1))]
)
def test_numbers_must_be_positive(kind: type[Placement], numbers: tuple[int, ...]) -> None:
    with pytest.raises(PlacementError, match=r"^\w+ is -?\d; a placement needs a positive number$"):
        kind(*numbers)
