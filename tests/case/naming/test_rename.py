"""A sharded module with other names than the reference: fused, stacked and split, through whole runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import command
import pytest
import torch
from command import harness_of
from safetensors.torch import save_file

CASES = """
import torch
import torch.distributed as dist
from torch import nn
from tp_harness import Case, Concat, Interleave, Item, KVHeads, Part, QKVHeads, Shard, Stack, Transposed

HIDDEN, HEADS, KV, DIM, WIDE, EXPERTS = 24, 8, 2, 4, 16, 4
Q_ROWS, KV_ROWS = HEADS * DIM, KV * DIM

def attend(x, q, k, v):
    q, k, v = (t.unflatten(-1, (-1, DIM)).transpose(1, 2) for t in (q, k, v))
    k, v = (t.repeat_interleave(q.shape[1] // k.shape[1], 1) for t in (k, v))
    return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)

class Expert(nn.Module):
    def __init__(self):
        super().__init__()
        self.w1, self.w3 = nn.Linear(HIDDEN, WIDE, bias=False), nn.Linear(HIDDEN, WIDE, bias=False)
        self.w2 = nn.Linear(WIDE, HIDDEN, bias=False)

class Apart(nn.Module):
    '''Every matrix by itself, as public checkpoints have them.'''

    def __init__(self):
        super().__init__()
        self.q_proj, self.o_proj = nn.Linear(HIDDEN, Q_ROWS), nn.Linear(Q_ROWS, HIDDEN, bias=False)
        self.k_proj, self.v_proj = nn.Linear(HIDDEN, KV_ROWS), nn.Linear(HIDDEN, KV_ROWS)
        self.experts = nn.ModuleList(Expert() for _ in range(EXPERTS))

    def forward(self, x):
        x = x + self.o_proj(attend(x, self.q_proj(x), self.k_proj(x), self.v_proj(x)))
        return x + sum(e.w2(torch.relu(e.w1(x)) * e.w3(x)) for e in self.experts)

class Fused(nn.Module):
    '''The same with fused queries, keys and values, and with stacked experts; gate and up take turns.'''

    def __init__(self, ranks=1, kv_ranks=1):
        super().__init__()
        self.rows = Q_ROWS // ranks, KV_ROWS // kv_ranks, KV_ROWS // kv_ranks
        self.qkv, self.dense = nn.Linear(HIDDEN, sum(self.rows)), nn.Linear(Q_ROWS // ranks, HIDDEN, bias=False)
        self.w13 = nn.Parameter(torch.empty(EXPERTS, 2 * WIDE // ranks, HIDDEN))
        self.w2 = nn.Parameter(torch.empty(EXPERTS, WIDE // ranks, HIDDEN))  # (experts, in, out)

    def forward(self, x):
        x = x + self.sum(self.dense(attend(x, *self.qkv(x).split(self.rows, -1))))
        y = torch.einsum("bsh,ewh->ebsw", x, self.w13)
        return x + self.sum(torch.einsum("ebsw,ewh->bsh", torch.relu(y[..., ::2]) * y[..., 1::2], self.w2))

    def sum(self, x):
        return x

class ShardedFused(Fused):
    def __init__(self):
        super().__init__(dist.get_world_size(), min(KV, dist.get_world_size()))

    def sum(self, x):
        dist.all_reduce(x)
        return x

def draw(generator):
    return (torch.randn(2, 8, HIDDEN, generator=generator),)

RENAME = {
    "qkv.*": Concat("q_proj.*", "k_proj.*", "v_proj.*"),
    "dense.weight": "o_proj.weight",
    "w13": Stack(Interleave("experts.*.w1.weight", "experts.*.w3.weight")),
    "w2": Transposed(Stack("experts.*.w2.weight")),
}
HEADS_CUT = QKVHeads(HEADS, KV, DIM)
PLAN = {"qkv.weight": HEADS_CUT, "qkv.bias": HEADS_CUT, "dense.weight": Shard(1)}
PLAN |= {"w13": Shard(1, unit=2), "w2": Shard(1)}

def to_fused(rename=RENAME, plan=PLAN, **fields):
    return Case(name="own", reference=Apart, sharded=ShardedFused, rename=rename, plan=plan, inputs=draw, **fields)

class ShardedApart(Apart):
    def __init__(self):
        super().__init__()
        ranks = dist.get_world_size()
        kv = KV_ROWS // min(KV, ranks)
        self.q_proj, self.o_proj = nn.Linear(HIDDEN, Q_ROWS // ranks), nn.Linear(Q_ROWS // ranks, HIDDEN, bias=False)
        self.k_proj, self.v_proj = nn.Linear(HIDDEN, kv), nn.Linear(HIDDEN, kv)

    def forward(self, x):
        y = self.o_proj(attend(x, self.q_proj(x), self.k_proj(x), self.v_proj(x)))
        dist.all_reduce(y)
        x = x + y
        return x + sum(e.w2(torch.relu(e.w1(x)) * e.w3(x)) for e in self.experts)

BACK = {
    "q_proj.*": Part("qkv.*", 0, Q_ROWS),
    "k_proj.*": Part("qkv.*", Q_ROWS, KV_ROWS),
    "v_proj.*": Part("qkv.*", Q_ROWS + KV_ROWS),
    "o_proj.weight": "dense.weight",
    "experts.*.w1.weight": Part(Item("w13"), 0, step=2),
    "experts.*.w3.weight": Part(Item("w13"), 1, step=2),
    "experts.*.w2.weight": Transposed(Item("w2")),
}
KV_CUT = KVHeads(0, KV, DIM)
APART_PLAN = {"q_proj.weight": Shard(0), "q_proj.bias": Shard(0), "o_proj.weight": Shard(1)}
APART_PLAN |= {f"{name}.{part}": KV_CUT for name in ("k_proj", "v_proj") for part in ("weight", "bias")}

FUSED = to_fused()
APART = Case(name="own", reference=Fused, sharded=ShardedApart, rename=BACK, plan=APART_PLAN, inputs=draw)
OTHER_ORDER = to_fused(RENAME | {"qkv.*": Concat("q_proj.*", "v_proj.*", "k_proj.*")})
HALVES = to_fused(RENAME | {"w13": Stack(Concat("experts.*.w1.weight", "experts.*.w3.weight"))})
PREFIXED = to_fused(prefix="model.layers.3.")
UNSAID, TYPO = to_fused({}), to_fused(RENAME | {"qvk.*": "q_proj.*"})

def lost(name):
    return RENAME.get(name) or (Concat("q_proj.bias", "k_proj.bias", "k_proj.bias") if name == "qkv.bias" else None)

LOST = to_fused(lambda name: Concat(*(f"{n}_proj.weight" for n in "qkv")) if name == "qkv.weight" else lost(name))

class Tied(nn.Module):
    def __init__(self, rows=32, head="lm_head"):
        super().__init__()
        self.embed, self.act = nn.Embedding(rows, HIDDEN), nn.Identity()
        setattr(self, head, nn.Linear(HIDDEN, rows, bias=False))
        getattr(self, head).weight = self.embed.weight
        self.head = head

    def forward(self, ids):
        return getattr(self, self.head)(self.embed(ids))

class ShardedTied(Tied):
    def __init__(self):
        super().__init__(32 // dist.get_world_size(), "unembed")

    def forward(self, ids):
        rows = self.embed.num_embeddings
        own = ids - dist.get_rank() * rows
        x = self.embed(own.clamp(0, rows - 1)) * ((own >= 0) & (own < rows))[..., None]
        dist.all_reduce(x)
        return self.unembed(x)

TIED = Case(
    name="own", reference=Tied, sharded=ShardedTied, rename={"unembed.weight": "lm_head.weight"}, output=Shard(-1),
    plan={"embed.weight": Shard(0), "unembed.weight": Shard(0)},
    inputs=lambda g: (torch.cat([torch.arange(32), torch.randint(32, (8,), generator=g)]).view(2, 20),),
)
"""
ALL = ("exact", "float32", "bfloat16")
RIGHT, WRONG = ("FUSED", "APART", "TIED"), ("OTHER_ORDER", "HALVES", "LOST")


def verified(folder: Path, names: tuple[str, ...], code: int, *given: str) -> dict[tuple[str, str, int], Any]:
    """The results of a run of these cases by name, dtype and degree."""
    record = command.verified(folder, CASES, names, code, *given)
    assert all(control["rejected"] for control in record["controls"]) and record["controls"]
    of = {(f"own ({name})" if len(names) > 1 else "own"): name for name in names}
    return {(of[r["component"]], r["dtype"], r["tp"]): r for r in record["results"]}


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str, int], Any]:
    return verified(tmp_path_factory.mktemp("right"), RIGHT, 0, "--tp", "1,2,8")


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str, int], Any]:
    return verified(tmp_path_factory.mktemp("wrong"), WRONG, 1, "--tp", "2", "--dtype", "exact", "--dtype", "float32")


@pytest.mark.parametrize("tp", [1, 2, 8])
@pytest.mark.parametrize("name", RIGHT)
def test_fused_or_apart_it_is_the_same_function(right: dict[tuple[str, str, int], Any], name: str, tp: int) -> None:
    statuses = {dtype: right[name, dtype, tp]["status"] for dtype in ALL}
    assert statuses == {"exact": "PROVED", "float32": "PASS", "bfloat16": "PASS"}
    checks = {check["name"]: check["passed"] for check in right[name, "float32", tp]["checks"]}
    assert checks["reassembly"]


@pytest.mark.parametrize("name", WRONG)
def test_what_is_fused_in_another_order_is_another_function(wrong: dict[tuple[str, str, int], Any], name: str) -> None:
    assert [wrong[name, dtype, 2]["status"] for dtype in ("exact", "float32")] == ["DIFFERENT", "MISMATCH"]


def test_a_checkpoint_has_the_names_of_the_reference(tmp_path: Path) -> None:
    rows = {"q_proj": 32, "k_proj": 8, "v_proj": 8}
    source = torch.Generator().manual_seed(3)
    stored = {f"{name}.bias": torch.randn(n, generator=source) for name, n in rows.items()}
    shapes = {f"{name}.weight": (n, 24) for name, n in rows.items()} | {"o_proj.weight": (24, 32)}
    for i in range(4):
        shapes |= {f"experts.{i}.w{n}.weight": (24, 16) if n == 2 else (16, 24) for n in (1, 2, 3)}
    stored |= {name: torch.randn(shape, generator=source) / 5 for name, shape in shapes.items()}
    file = tmp_path / "model.safetensors"
    save_file({f"model.layers.3.{name}": x for name, x in stored.items()}, file)
    found = verified(tmp_path, ("PREFIXED",), 0, "--tp", "2", "--dtype", "float32", "--checkpoint", str(file))
    assert found["PREFIXED", "float32", 2]["status"] == "PASS"


def test_names_that_differ_are_refused_with_the_rename_to_paste(tmp_path: Path) -> None:
    harness = harness_of(tmp_path, CASES)
    lists = (["--case", f"{harness.cases}:{name}", "--tp", "2"] for name in ("UNSAID", "TYPO"))
    (code, said), (also, typo) = harness.run(*lists)
    assert (code, also) == (2, 2)
    assert "own: the sharded module has a parameter w13 that the reference does not have; the reference has q_p" in said
    assert (
        'if these are the same numbers under other names, say so: rename={"qkv.weight": Concat("q_proj.weight", '
        '"k_proj.weight", "v_proj.weight"), "qkv.bias": Concat("q_proj.bias", "k_proj.bias", "v_proj.bias"), '
    ) in said
    assert "the rename of own makes qvk.*, which the sharded module does not have." in typo
