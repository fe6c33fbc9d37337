"""What ranks hold as padding must be without effect: it is filled with numbers, and no output may change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import command
import pytest
import torch

from tp_harness.parallel.placements import FusedShard, Placement, Replicate, Shard, same_bits
from tp_harness.ranks.padding import Filled

CASES = """
import torch
import torch.distributed as dist
from torch import nn
from tp_harness import Case, Shard

HIDDEN, WIDE, VOCABULARY, LAYERS = 24, 50, 77, 2
RANK, RANKS = dist.get_rank, dist.get_world_size
EVEN, RELIED = (lambda dim: Shard(dim, pad_to="even")), (lambda dim: Shard(dim, pad_to="even", inert=False))

def padded(length):
    return -(-length // RANKS())

class Layer(nn.Module):
    def __init__(self, own):
        super().__init__()
        self.up, self.down = nn.Linear(HIDDEN, own(WIDE)), nn.Linear(own(WIDE), HIDDEN, bias=False)

    def forward(self, x, add, mean):
        y = torch.relu(self.up(x))
        return x + add(self.down(y / mean(y)))

class Model(nn.Module):
    '''The largest logit of each token.'''

    def __init__(self, own=lambda length: length):
        super().__init__()
        self.layers = nn.ModuleList(Layer(own) for _ in range(LAYERS))
        self.head = nn.Linear(HIDDEN, own(VOCABULARY))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x, self.add, self.mean)
        return self.best(self.head(x))

    def add(self, x):
        return x

    def mean(self, y):
        return 1

    def best(self, logits):
        return logits.amax(-1)

class Sharded(Model):
    def __init__(self):
        super().__init__(padded)

    def add(self, x):
        dist.all_reduce(x)
        return x

    def best(self, logits):
        best = self.masked(logits).amax(-1)
        dist.all_reduce(best, dist.ReduceOp.MAX)
        return best

    def masked(self, logits):
        width = logits.shape[-1]
        return logits.masked_fill(RANK() * width + torch.arange(width) >= VOCABULARY, float("-inf"))

class Unmasked(Sharded):
    def masked(self, logits):
        return logits

class Mean(Model):
    def mean(self, y):
        return y.mean(-1, keepdim=True) + 1

class ShardedMean(Sharded):
    '''Right with zeros alone: it adds up what is padding, too.'''

    def mean(self, y):
        return self.add(y.sum(-1, keepdim=True)) / WIDE + 1

def draw(generator):
    return (torch.randn(2, 8, HIDDEN, generator=generator),)

def case(sharded, cut=EVEN, reference=Model):
    plan = {"head.weight": EVEN(0), "head.bias": EVEN(0)}
    for i in range(LAYERS):
        plan |= {f"layers.{i}.up.weight": cut(0), f"layers.{i}.up.bias": cut(0), f"layers.{i}.down.weight": EVEN(1)}
    return Case(name="own", reference=reference, sharded=sharded, plan=plan, inputs=draw)

RIGHT, WRONG = case(Sharded), case(Unmasked)
ZEROS_NEEDED, ZEROS_SAID = (case(ShardedMean, cut, Mean) for cut in (EVEN, RELIED))

HEADS, KV, DIM = 12, 3, 4

class Attention(nn.Module):
    '''Four query heads for each key and value head; the last ranks may have dummies of both.'''

    def __init__(self, heads=HEADS, kv=KV):
        super().__init__()
        self.heads, self.kv = heads, kv
        self.q, self.o = nn.Linear(HIDDEN, heads * DIM), nn.Linear(heads * DIM, HIDDEN, bias=False)
        self.k, self.v = nn.Linear(HIDDEN, kv * DIM), nn.Linear(HIDDEN, kv * DIM)

    def forward(self, x):
        q, k, v = (part(x).unflatten(-1, (-1, DIM)).transpose(1, 2) for part in (self.q, self.k, self.v))
        k, v = (t.repeat_interleave(self.heads // self.kv, 1) for t in (k, v))
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.add(self.o(y.transpose(1, 2).flatten(2)))

    def add(self, x):
        return x

class ShardedAttention(Attention):
    def __init__(self, of_kv):
        super().__init__(padded(KV) * HEADS // KV if of_kv else padded(HEADS), padded(KV))

    def add(self, x):
        dist.all_reduce(x)
        return x

def attention(of_kv):
    heads = DIM * (HEADS // KV if of_kv else 1)
    plan = {"q.weight": Shard(0, heads, "even"), "q.bias": Shard(0, heads, "even"), "o.weight": Shard(1, heads, "even")}
    plan |= {f"{name}.{part}": Shard(0, DIM, "even") for name in "kv" for part in ("weight", "bias")}
    return Case(
        name="heads", reference=Attention, sharded=lambda: ShardedAttention(of_kv), plan=plan, inputs=draw,
    )

GROUPED, UNGROUPED = attention(True), attention(False)

class Product(nn.Module):
    def __init__(self, own=lambda length: length):
        super().__init__()
        self.of_inputs = nn.Linear(own(HIDDEN), 8, bias=False)

    def forward(self, x):
        return self.add(self.of_inputs(x))

    def add(self, x):
        return x

class ShardedProduct(Product):
    seen = 0.0

    def __init__(self):
        super().__init__(padded)

    def forward(self, x):
        return super().forward(x) + self.seen * (x.sum() - x[..., :2].sum()) * (RANK() == RANKS() - 1)

    def add(self, x):
        dist.all_reduce(x)
        return x

class Reads(ShardedProduct):
    '''The last of 7 ranks has two features and two of padding, which it adds.'''

    seen = 0.5

def product(sharded):
    return Case(
        name="given", reference=Product, sharded=sharded, plan={"of_inputs.weight": EVEN(1)}, inputs=draw,
        input_placements=(EVEN(-1),),
    )

GIVEN, GIVEN_WRONG = product(ShardedProduct), product(Reads)
"""
RELIES = "mask what comes of it or, if the module relies on the zeros, say Shard(..., inert=False)"


def verified(folder: Path, tp: str, names: tuple[str, ...], code: int, *dtypes: str) -> dict[str, Any]:
    """The results of a run of these cases by name, of all dtypes."""
    given = (word for dtype in dtypes for word in ("--dtype", dtype))
    results = command.verified(folder, CASES, names, code, "--tp", tp, *given)["results"]
    return {
        f"{name} {r['dtype']}": r for name in names for r in results if f"({name})" in r["component"] or len(names) == 1
    }


def padding(result: dict[str, Any]) -> str:
    [check] = [check for check in result["checks"] if check["name"] == "padding"]
    assert check["passed"] == (result["status"] == "PASS")
    return str(check["detail"])


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    names = ("RIGHT", "WRONG", "ZEROS_NEEDED", "ZEROS_SAID")
    return verified(tmp_path_factory.mktemp("own"), "8", names, 1, "float32", "bfloat16")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_padded_layers_are_inert_each_by_itself(own: dict[str, Any], dtype: str) -> None:
    assert padding(own[f"RIGHT {dtype}"]) == (
        "other numbers than zeros in the padding of head.weight, head.bias, layers.*.up.weight, layers.*.up.bias, "
        "layers.*.down.weight change no bit of the outputs"
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_padded_logits_that_are_not_masked_are_found_though_zeros_hide_them(own: dict[str, Any], dtype: str) -> None:
    result = own[f"WRONG {dtype}"]
    assert result["status"] == "MISMATCH"
    assert all(gate["value"] <= gate["limit"] for gate in result["gates"]), "no zero is the largest logit"
    assert padding(result) == (
        f"output.0 of rank 0 changes with other numbers than zeros in the padding of head.weight: {RELIES}"
    )


def test_a_module_that_relies_on_zeros_must_say_so(own: dict[str, Any]) -> None:
    needed, said = own["ZEROS_NEEDED float32"], own["ZEROS_SAID float32"]
    assert padding(needed).startswith(
        "output.0 of rank 0 changes with other numbers than zeros in the padding of layers.*"
    )
    assert padding(said).endswith(
        "padding of head.weight, head.bias, layers.*.down.weight change no bit of the outputs"
    )


@pytest.mark.parametrize("dtype", ["exact", "float32"])
def test_dummy_heads_must_keep_the_groups_of_queries(tmp_path: Path, dtype: str) -> None:
    results = verified(tmp_path, "4", ("GROUPED", "UNGROUPED"), 1, dtype)
    right, wrong = results[f"GROUPED {dtype}"], results[f"UNGROUPED {dtype}"]
    assert (right["status"], wrong["status"]) == {
        "exact": ("PROVED", "DIFFERENT"),
        "float32": ("PASS", "MISMATCH"),
    }[dtype]
    if dtype == "float32":
        assert "q.weight" in padding(right) and "o.weight" in padding(right)


def test_the_padding_of_an_input_is_filled_too(tmp_path: Path) -> None:
    results = verified(tmp_path, "7", ("GIVEN", "GIVEN_WRONG"), 1, "float32")
    assert "of of_inputs.weight, input.0 change no bit" in padding(results["GIVEN float32"])
    assert "rank 6 changes with other numbers than zeros in the padding of input.0" in padding(
        results["GIVEN_WRONG float32"]
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize(
    "placement", [Shard(0, pad_to="even"), FusedShard(0, (3, 2), (Shard(0, pad_to="even"), Replicate()))]
)
def test_padding_alone_is_filled(placement: Placement, dtype: torch.dtype) -> None:
    full, filled = torch.ones(5, 3).to(dtype), Filled(placement, "weight")
    found = 0
    for rank in range(4):
        shard, right = filled.shard(full, rank, 4), placement.shard(full, rank, 4)
        mask = placement.padding(full.shape, rank, 4)
        assert mask is not None and shard.shape == right.shape
        assert torch.equal((shard.float() != right.float()), mask.expand(shard.shape)), "no zero among the numbers"
        assert same_bits(shard, filled.shard(full, rank, 4)), "the same again"
        found += int(mask.sum())
    assert found
