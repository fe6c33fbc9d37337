"""Dimensions that do not divide: padded and uneven shards, and fused blocks of unequal length, through whole runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from command import harness_of, verified

CASES = """
import torch
import torch.distributed as dist
from torch import nn
from tp_harness import Case, FusedShard, Replicate, Shard

HIDDEN, WIDE, VOCABULARY = 24, 50, 77
RANK, RANKS = dist.get_rank, dist.get_world_size
PADDED, UNEVEN = (lambda dim: Shard(dim, pad_to="even")), (lambda dim: Shard(dim, uneven=True))

def padded(length):
    return -(-length // RANKS())

def uneven(length):
    return min(length, (RANK() + 1) * padded(length)) - min(length, RANK() * padded(length))

class MLP(nn.Module):
    def __init__(self, own=lambda length: length):
        super().__init__()
        self.up, self.down = nn.Linear(HIDDEN, own(WIDE)), nn.Linear(own(WIDE), HIDDEN, bias=False)
        self.head, self.act = nn.Linear(HIDDEN, own(VOCABULARY)), nn.Identity()

    def forward(self, x):
        return self.head(self.sum(self.down(self.act(self.scaled(torch.relu(self.up(x)))))))

    def scaled(self, x):
        return x

    def sum(self, x):
        return x

class Sharded(MLP):
    def sum(self, x):
        dist.all_reduce(x)
        return x

class Masked(Sharded):
    '''What is no word is masked.'''

    def forward(self, x):
        logits = super().forward(x)
        first = RANK() * logits.shape[-1]
        return logits.masked_fill(first + torch.arange(logits.shape[-1]) >= VOCABULARY, float("-inf"))

class Scaled(Sharded):
    '''The rank that has the 41st feature of `up` gives it half.'''

    def scaled(self, x):
        return x * 0.5 if RANK() == 40 // padded(WIDE) else x

def case(sharded, cut, own, **fields):
    plan = {"up.weight": cut(0), "up.bias": cut(0), "down.weight": cut(1), "head.weight": cut(0), "head.bias": cut(0)}
    return Case(
        name="own", reference=MLP, sharded=lambda: sharded(own), output=cut(-1), taps={"act": cut(-1)}, plan=plan,
        inputs=lambda g: (torch.randn(2, 8, HIDDEN, generator=g),), **fields,
    )

EVEN, CHUNKS = case(Sharded, PADDED, padded), case(Sharded, UNEVEN, uneven)
MASKED = case(Masked, PADDED, padded)
EVEN_WRONG, CHUNKS_WRONG = case(Scaled, PADDED, padded), case(Scaled, UNEVEN, uneven)
NEITHER, OTHER = case(Sharded, Shard, padded), case(Sharded, UNEVEN, padded)

SIZES = (16, 16, 2, 8)

class Mixer(nn.Module):
    '''As Mamba2's: gate, x, one group of B for all heads, and a step of each head.'''

    def __init__(self, ranks=1, sizes=SIZES):
        super().__init__()
        self.sizes = tuple(n if n == 2 else n // ranks for n in sizes)
        self.project = nn.Linear(HIDDEN, sum(self.sizes))
        self.out = nn.Linear(self.sizes[1], HIDDEN, bias=False)

    def forward(self, x):
        gate, x, group, step = self.project(x).split(self.sizes, -1)
        x = (x.unflatten(-1, (self.sizes[3], -1)) * step[..., None]).flatten(-2)
        return self.sum(self.out(torch.relu(gate) * x * group.sum(-1, keepdim=True)))

    def scaled(self, x):
        return x

    def sum(self, x):
        return x

class ShardedMixer(Mixer):
    def __init__(self):
        super().__init__(RANKS())

    def sum(self, x):
        dist.all_reduce(x)
        return x

def mixer(name, blocks):
    return Case(
        name=name, reference=Mixer, sharded=ShardedMixer, inputs=lambda g: (torch.randn(2, 8, HIDDEN, generator=g),),
        plan={"project.weight": blocks, "project.bias": blocks, "out.weight": Shard(1)},
    )

CUT = Shard(0)
FUSED = mixer("fused", FusedShard(0, SIZES, (CUT, CUT, Replicate(), CUT)))
FUSED_WRONG = mixer("fused", FusedShard(0, (16, 2, 16, 8), (CUT, Replicate(), CUT, CUT)))
"""
RIGHT = ("EVEN", "CHUNKS", "MASKED", "FUSED")
WRONG = ("EVEN_WRONG", "CHUNKS_WRONG", "FUSED_WRONG")


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return verified(tmp_path_factory.mktemp("right"), CASES, RIGHT, 0, "--tp", "1,4,8")


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return verified(
        tmp_path_factory.mktemp("wrong"), CASES, WRONG, 1, "--tp", "8", "--dtype", "exact", "--dtype", "float32"
    )


def of(record: dict[str, Any], name: str, dtype: str, tp: int = 8) -> dict[str, Any]:
    """The one result of a case."""
    label = "fused" if name.startswith("FUSED") else "own"
    [found] = [
        each
        for each in record["results"]
        if each["component"] in (label, f"{label} ({name})") and (each["dtype"], each["tp"]) == (dtype, tp)
    ]
    return found  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_one_passes_in_every_dtype_and_its_control_is_rejected(right: dict[str, Any], name: str) -> None:
    for tp in (1, 4, 8):
        statuses = [of(right, name, dtype, tp)["status"] for dtype in ("exact", "float32", "bfloat16")]
        assert statuses == ["PROVED", "PASS", "PASS"]
    assert all(control["rejected"] for control in right["controls"])


def test_ranks_hold_what_they_are_given(right: dict[str, Any]) -> None:
    rows = {name: [r["weight_bytes"] for r in of(right, name, "float32")["ranks"]] for name in ("EVEN", "CHUNKS")}
    of_up, of_head = (
        4 * (24 + 1 + 24),
        4 * (24 + 1),
    )  # bytes of a row of `up` with its column of `down`, and of a head's
    assert rows["EVEN"] == [7 * of_up + 10 * of_head] * 8
    assert rows["CHUNKS"] == [7 * of_up + 10 * of_head] * 7 + [1 * of_up + 7 * of_head]
    [reassembly] = [c for c in of(right, "EVEN", "float32")["checks"] if c["name"] == "reassembly"]
    assert reassembly["detail"].endswith(
        "padding: 6 rows for up.weight, 6 rows for up.bias, 6 rows for down.weight, 3 rows for head.weight, 3 rows for "
        "head.bias"
    )


@pytest.mark.parametrize("name", ["EVEN_WRONG", "CHUNKS_WRONG"])
@pytest.mark.parametrize("dtype", ["exact", "float32"])
def test_a_wrong_one_is_found_at_its_rank(wrong: dict[str, Any], name: str, dtype: str) -> None:
    result = of(wrong, name, dtype)
    assert result["status"] == ("DIFFERENT" if dtype == "exact" else "MISMATCH")
    assert (result["first_divergence"]["tensor"], result["first_divergence"]["ranks"]) == ("act", [5])
    assert not [note for note in wrong["notes"] if "bug" in note]


def test_blocks_that_are_cut_in_another_order_are_another_function(wrong: dict[str, Any]) -> None:
    assert of(wrong, "FUSED_WRONG", "exact")["status"] == "DIFFERENT"
    assert of(wrong, "FUSED_WRONG", "float32")["status"] == "MISMATCH"


def test_a_plan_that_does_not_fit_names_those_that_would(tmp_path: Path) -> None:
    harness = harness_of(tmp_path, CASES)
    [(code, said)] = harness.run(["--case", f"{harness.cases}:NEITHER", "--tp", "8"])
    assert code == 2
    assert (
        "up.weight of own cannot be placed as Shard(dim=0, unit=1): dimension 0 of shape (50, 24) does not divide over "
        "8 ranks; Shard(dim=0, unit=1, uneven=True) or Shard(dim=0, unit=1, pad_to='even') would fit."
    ) in said


def test_the_last_rank_says_that_it_has_another_shape(tmp_path: Path) -> None:
    record = verified(tmp_path, CASES, ("OTHER",), 3, "--tp", "8", "--dtype", "float32")
    assert (
        "Shard(dim=0, unit=1, uneven=True) makes shards [1, 24] of up.weight [50, 24], but the sharded module holds "
        "[7, 24] on rank 7 of 8; Shard(dim=0, unit=1, pad_to='even') or Shard(dim=0, unit=1, pad_to=56) would fit."
    ) in record["results"][0]["reason"]
