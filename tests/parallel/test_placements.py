"""Placements: join(split(x)) is x bit for bit, every rank holds the right part, and wrong cuts are noticed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from bits import DTYPES, LAYOUTS, lay_out, random_bits
from hypothesis import given, settings
from hypothesis import strategies as st

from tp_harness.parallel.placements import (
    FusedShard,
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
from tp_harness.parallel.same_bits import bits_of

SIZES = (1, 2, 3, 5, 7, 8, 32)
SETTINGS = settings(deadline=None, max_examples=25)


@st.composite
def cuts(draw: st.DrawFn, kind: str) -> tuple[Placement, tuple[int, ...], int, list[tuple[int, ...]]]:
    """(placement, full shape, size, shape of each rank's shard), of one kind of placement."""
    size = draw(st.sampled_from(SIZES))
    shape = draw(st.lists(st.integers(0, 3), min_size=1, max_size=3))
    dim = draw(st.integers(-len(shape), len(shape) - 1))
    each, unit = draw(st.integers(0, 3)), draw(st.integers(1, 3))
    if kind == "replicate":
        return Replicate(), tuple(shape), size, [tuple(shape)] * size
    ranks, parts = range(size), None
    if kind == "shard":
        placement, whole, part = Shard(dim, unit=unit), size * each * unit, each * unit
    elif kind == "uneven":
        units = draw(st.integers(0, 70))
        step = -(-units // size)
        placement, whole = Shard(dim, unit=unit, uneven=True), units * unit
        parts = [(min(units, (rank + 1) * step) - min(units, rank * step)) * unit for rank in ranks]
    elif kind == "padded":
        whole = draw(st.integers(0, size * each * unit))
        placement, part = Shard(dim, unit=unit, pad_to="even"), -(-whole // (size * unit)) * unit
        if draw(st.booleans()) and each:
            placement, part = Shard(dim, unit=unit, pad_to=size * each * unit), each * unit
    elif kind == "fused":
        lengths = draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
        blocks = [(n * size, Shard(dim)) if n < 3 else (n, Shard(dim, pad_to="even")) for n in lengths]
        blocks += [(2, KVHeads(dim, 2)), (5, Shard(dim, uneven=True))] if size % 2 == 0 else []
        placement = FusedShard(dim, tuple(n for n, _ in blocks), tuple(cut for _, cut in blocks))
        whole = sum(placement.sizes)
        parts = [sum(len(cut_along_0(cut).shard(torch.zeros(n), rank, size)) for n, cut in blocks) for rank in ranks]
    elif kind == "strided_shard":
        placement, whole, part = StridedShard(dim, unit), size * each * unit, each * unit
    else:
        heads = draw(st.sampled_from([h for h in range(1, 65) if h % size == 0 or size % h == 0]))
        placement, whole, part = KVHeads(dim, heads, unit=unit), heads * unit, max(1, heads // size) * unit
        if kind == "qkv_heads":
            queries = size * draw(st.integers(1, 3))
            placement, dim = QKVHeads(queries, heads, unit), 0
            whole, part = whole * 2 + queries * unit, part * 2 + queries // size * unit
    full = list(shape)
    full[dim] = whole
    locals_ = [list(shape) for _ in ranks]
    for rank, local in enumerate(locals_):
        local[dim] = parts[rank] if parts else part
    return placement, tuple(full), size, [tuple(local) for local in locals_]


def cut_along_0(placement: Placement) -> Placement:
    return replace(placement, dim=0)  # type: ignore[call-arg]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "kind", ["replicate", "shard", "strided_shard", "kv_heads", "qkv_heads", "uneven", "padded", "fused"]
)
@given(data=st.data(), layout=st.sampled_from(LAYOUTS), seed=st.integers(0, 2**31))
@SETTINGS
def test_joining_what_was_split_gives_the_same_bits(
    kind: str, dtype: str, data: st.DataObject, layout: str, seed: int
) -> None:
    placement, shape, size, local = data.draw(cuts(kind))
    full = random_bits(shape, dtype, seed, layout)
    shards = placement.split(full, size)
    assert [tuple(shard.shape) for shard in shards] == local
    assert {shard.dtype for shard in shards} == {full.dtype}
    assert same_bits(placement.fitted(full.shape).join(shards), full)
    for rank, shard in enumerate(shards):
        padding = placement.padding(full.shape, rank, size)
        assert padding is None or not bits_of(shard)[padding.expand(shard.shape)].any(), "padded with zeros"


@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if "float8" not in dtype])
@given(size=st.sampled_from(SIZES), layout=st.sampled_from(LAYOUTS), seed=st.integers(0, 2**31), rows=st.integers(0, 4))
@SETTINGS
def test_partial_gives_finite_values_back_bit_for_bit(dtype: str, size: int, layout: str, seed: int, rows: int) -> None:
    x = random_bits((rows, 3), dtype, seed)
    full = lay_out(torch.where(torch.isfinite(x), x, -0.0) if x.is_floating_point() or x.is_complex() else x, layout)
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
    "uneven": (Shard(0, uneven=True), 10, [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]),
    "uneven-empty": (Shard(0, uneven=True), 5, [[0, 1], [2, 3], [4], []]),
    "uneven-heads": (Shard(0, unit=2, uneven=True), 6, [[0, 1, 2, 3], [4, 5]]),
    "padded-even": (Shard(0, pad_to="even"), 5, [[0, 1], [2, 3], [4, 0], [0, 0]]),
    "padded-heads": (Shard(0, unit=2, pad_to="even"), 6, [[0, 1, 2, 3], [4, 5, 0, 0]]),
    "padded-to": (Shard(0, pad_to=8), 5, [[0, 1, 2, 3], [4, 0, 0, 0]]),
    "fused": (FusedShard(0, (4, 2, 2)), 8, [[0, 1, 4, 6], [2, 3, 5, 7]]),
    "fused-each": (FusedShard(0, (3, 2), (Shard(0, pad_to="even"), Replicate())), 5, [[0, 1, 3, 4], [2, 0, 3, 4]]),
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


@pytest.mark.parametrize(
    ("length", "size", "padded"), [(151_937, 32, 151_968), (151_937, 8, 151_944), (151_937, 2, 151_938), (40, 32, 64)]
)
def test_the_next_length_that_divides(length: int, size: int, padded: int) -> None:
    shards = Shard(0, pad_to="even").split(torch.ones(length, dtype=torch.bool), size)
    assert sum(map(len, shards)) == padded
    masks = [Shard(0, pad_to="even").padding((length,), rank, size) for rank in range(size)]
    assert sum(int(mask.sum()) for mask in masks if mask is not None) == padded - length


def test_only_the_slice_that_holds_padding_is_a_copy() -> None:
    full = torch.ones(10)
    shards = Shard(0, pad_to=16).split(full, 8)
    own = [shard.untyped_storage().data_ptr() == full.untyped_storage().data_ptr() for shard in shards[:5]]
    assert own == [True] * 5
    assert [shard.tolist() for shard in Shard(0, pad_to=12).split(full, 4)[2:]] == [[1.0] * 3, [1.0, 0.0, 0.0]]


def test_shards_that_were_not_fitted_join_with_their_padding() -> None:
    placement = Shard(0, pad_to="even")
    assert placement.join(placement.split(torch.arange(5), 4)).tolist() == [0, 1, 2, 3, 4, 0, 0, 0]
    assert repr(placement.fitted((5,))) == "Shard(dim=0, unit=1, pad_to='even')"


def test_shard_and_replicate_are_those_of_torch() -> None:
    """torch.distributed as each of four ranks in turn, without the others."""
    from torch.distributed import tensor as dt
    from torch.testing._internal.distributed.fake_pg import FakeStore

    full = random_bits((8, 6, 4), "float32", seed=0)
    pairs = [(Shard(0), dt.Shard(0)), (Shard(-1), dt.Shard(2)), (Replicate(), dt.Replicate())]
    pairs += [(Shard(1, uneven=True), dt.Shard(1))]
    for rank in range(4):
        torch.distributed.init_process_group("fake", rank=rank, world_size=4, store=FakeStore())
        try:
            mesh = dt.init_device_mesh("cpu", (4,))
            for ours, theirs in pairs:
                local = dt.distribute_tensor(full, mesh, [theirs], src_data_rank=None).to_local()
                assert same_bits(ours.shard(full, rank, 4), local)
        finally:
            torch.distributed.destroy_process_group()
