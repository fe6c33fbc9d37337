"""Replicas: copies that differ in one bit are refused, and the message names ranks, index and both values."""

from __future__ import annotations

import re

import pytest
import torch
from bits import random_bits
from hypothesis import given, settings
from hypothesis import strategies as st

from tp_harness.parallel.placements import KVHeads, QKVHeads, ReplicaError, Replicate, same_bits

REPLICATED = {"replicate": Replicate(), "kv_heads": KVHeads(0, 2), "qkv_heads": QKVHeads(8, 2, 1)}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("name", REPLICATED)
@given(rank=st.integers(0, 7), place=st.tuples(st.integers(0, 100), st.integers(0, 7)), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=25)
def test_join_refuses_replicas_that_differ_in_one_bit(
    name: str, dtype: str, rank: int, place: tuple[int, int], seed: int
) -> None:
    placement = REPLICATED[name]
    rows = 2 if name == "kv_heads" else 12
    shards = [shard.clone() for shard in placement.split(random_bits((rows, 3), dtype, seed), 8)]
    first = 3 if name == "qkv_heads" else 0  # a query row has no replica, and is not compared
    target = shards[rank].view(torch.uint8).view(-1)
    start = first * shards[rank].element_size()
    target[start + place[0] % (len(target) - start)] ^= 1 << place[1]
    with pytest.raises(ReplicaError) as caught:
        placement.join(shards)
    block = range(8) if name == "replicate" else range(rank // 4 * 4, rank // 4 * 4 + 4)
    assert rank in caught.value.ranks
    assert set(caught.value.ranks) <= set(block)
    assert len(caught.value.index) == 2


@pytest.mark.parametrize(
    ("values", "index", "text"),
    [
        ((1.0, 1.0 + 2**-23), (1, 2), "rank 3 holds 1.0000001192092896 at [1, 2] where rank 0 holds 1.0"),
        ((0.0, -0.0), (0, 0), "rank 3 holds -0.0 at [0, 0] where rank 0 holds 0.0"),
        ((1.0, float("nan")), (1, 0), "rank 3 holds nan at [1, 0] where rank 0 holds 1.0"),
    ],
    ids=["last_bit", "sign_of_zero", "nan"],
)
def test_replica_error_names_ranks_index_and_both_values(
    values: tuple[float, float], index: tuple[int, int], text: str
) -> None:
    shards = [torch.full((2, 3), values[0]) for _ in range(4)]
    shards[3][index] = values[1]
    with pytest.raises(ReplicaError, match=f"^{re.escape(text)}$") as caught:
        Replicate().join(shards)
    assert (caught.value.ranks, caught.value.index) == ((3, 0), index)


def test_replica_error_says_both_shapes_and_dtypes() -> None:
    text = "rank 1 holds torch.float64 of shape [3] where rank 0 holds torch.float32 of shape [2]"
    with pytest.raises(ReplicaError, match=f"^{re.escape(text)}$"):
        Replicate().join([torch.zeros(2), torch.zeros(3, dtype=torch.float64)])


def test_same_bits_tells_payloads_signs_shapes_and_dtypes() -> None:
    nan, other_nan, zero, minus_zero = torch.tensor([0x7FC00000, 0x7FC00001, 0, -(2**31)]).to(torch.int32).view(-1, 1)
    nan, other_nan, zero, minus_zero = (x.view(torch.float32) for x in (nan, other_nan, zero, minus_zero))
    assert same_bits(nan, nan.clone())
    assert not same_bits(nan, other_nan)
    assert not same_bits(zero, minus_zero)
    assert not same_bits(torch.zeros(2), torch.zeros(1, 2))
    assert not same_bits(torch.zeros(2), torch.zeros(2, dtype=torch.int32))
    assert not same_bits(torch.tensor([0j]), torch.tensor([complex(0.0, -0.0)]))
    assert same_bits(torch.tensor([complex(0.0, -0.0)]), torch.tensor([complex(0.0, -0.0)]))
