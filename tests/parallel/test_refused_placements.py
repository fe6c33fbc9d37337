"""Placements that cannot be, and tensors that they cannot cut, are refused in one sentence."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch

from tp_harness.errors import UsageError
from tp_harness.parallel.placements import (
    FusedShard,
    KVHeads,
    Placement,
    PlacementError,
    QKVHeads,
    Shard,
    StridedShard,
)

REFUSED: dict[str, tuple[Placement, tuple[int, ...], int, str]] = {
    "uneven": (Shard(1), (2, 6), 4, "dimension 1 of shape (2, 6) does not divide over 4 ranks"),
    "units": (Shard(0, unit=4), (8,), 4, "dimension 0 of shape (8,) does not divide over 4 ranks in units of 4"),
    "no_such_dimension": (Shard(2), (4, 4), 2, "a tensor of shape (4, 4) has no dimension 2 to shard"),
    "no_such_negative": (Shard(-3), (4, 4), 2, "a tensor of shape (4, 4) has no dimension -3 to shard"),
    "scalar": (Shard(0), (), 1, "a tensor of shape () has no dimension 0 to shard"),
    "stride": (StridedShard(0, 3), (8,), 2, "dimension 0 of shape (8,) does not divide over 2 ranks with stride 3"),
    "pad_units": (Shard(0, unit=4, pad_to=12), (8,), 2, "pad_to=12 does not divide over 2 ranks in units of 4"),
    "pad_short": (Shard(0, pad_to=6), (8,), 2, "dimension 0 has 8 elements, more than pad_to=6"),
    "uneven_units": (
        Shard(0, unit=4, uneven=True),
        (6,),
        2,
        "dimension 0 of shape (6,) does not divide over whole units in units of 4",
    ),
    "fused": (FusedShard(0, (4, 2)), (8,), 2, "its blocks have 6 elements together, and dimension 0 has 8"),
    "fused_block": (FusedShard(0, (4, 3)), (7,), 2, "dimension 0 of shape (3,) does not divide over 2 ranks"),
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


@pytest.mark.parametrize(
    "kind, numbers", [(Shard, (0, 0)), (StridedShard, (0, 0)), (KVHeads, (0, 0)), (QKVHeads, (4, 2, -1))]
)
def test_numbers_must_be_positive(kind: type[Placement], numbers: tuple[int, ...]) -> None:
    with pytest.raises(PlacementError, match=r"^\w+ is -?\d; a placement needs a positive number$"):
        kind(*numbers)


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda: Shard(0, pad_to="full"), "pad_to is 'full'; a length or \"even\" is needed."),
        (lambda: Shard(0, pad_to=True), 'pad_to is True; a length or "even" is needed.'),
        (lambda: Shard(0, pad_to=-8), "pad_to is -8; a placement needs a positive number"),
        (lambda: Shard(0, pad_to=8, uneven=True), "a Shard is padded or uneven, not both: leave out `pad_to` or "),
        (lambda: FusedShard(0, (2, 0)), "size 1 is 0; a placement needs a positive number"),
        (
            lambda: FusedShard(0, (2, 4), (Shard(0),)),
            "FusedShard has 2 sizes and 1 placements; one for",
        ),
        (lambda: FusedShard(0, (2,), (7,)), "FusedShard places a block as 7; a placement is needed."),  # type: ignore[arg-type]
        (lambda: FusedShard(0, (2,), (Shard(1),)), "Shard(dim=1, unit=1) cuts another dimension than 0, along which"),
    ],
)
def test_a_placement_that_cannot_be_is_refused(make: Callable[[], Placement], said: str) -> None:
    with pytest.raises(PlacementError) as caught:
        make()
    assert str(caught.value).startswith(said)
