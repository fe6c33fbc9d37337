"""Placements guessed from shapes: plain modules are placed and told, what may be several fused matrices is refused."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from tp_harness.case.placing.guessed_placements import check_guesses, said
from tp_harness.case.tried_placements import place_all
from tp_harness.errors import UsageError
from tp_harness.parallel.placements import Placement, QKVHeads, Shard, StridedShard
from tp_harness.testing import build_module, validate_accuracy

Shapes = Mapping[str, tuple[int, ...]]
# name -> full shape, of which the dimension written negative is the one that is cut
PLAIN: dict[str, Shapes] = {
    "mlp": {"up.weight": (-64, 16), "up.bias": (-64,), "down.weight": (16, -64), "down.bias": (16,)},
    "swiglu": {"gate.weight": (-64, 16), "up.weight": (-64, 16), "down.weight": (16, -64)},
    "gqa": {"q.weight": (-64, 16), "k.weight": (-32, 16), "v.weight": (-32, 16), "o.weight": (16, -64)},
    "gqa_by_fours": {"q.weight": (-64, 16), "k.weight": (-16, 16), "v.weight": (-16, 16), "o.weight": (16, -64)},
    "column_alone": {"weight": (-64, 16)},
    "row_alone": {"weight": (16, -64)},
    "rows_alone": {"a.weight": (16, -64), "b.weight": (16, -32)},
    "head_twice_as_wide": {"up.weight": (-64, 16), "down.weight": (16, -64), "head.weight": (-128, 16)},
    "embedding": {"embedding.weight": (-64, 16), "row.weight": (16, -32)},
    "in_proj_of_an_mlp": {"in_proj.weight": (-64, 16), "out_proj.weight": (16, -64)},
    "experts": {"w1": (4, -32, 16), "w3": (4, -32, 16), "w2": (4, 16, -32)},
    "experts_transposed": {"w1": (4, 16, -32), "w3": (4, 16, -32), "w2": (4, -32, 16)},
    "experts_shared_out": {"w13": (-4, 64, 16), "w2": (-4, 16, 32)},
    "block": {
        "attn.q.weight": (-32, 16), "attn.k.weight": (-32, 16), "attn.v.weight": (-32, 16), "attn.o.weight": (16, -32),
        "mlp.up.weight": (-64, 16), "mlp.down.weight": (16, -64),
    },
    "joined_inputs": {"a.weight": (-32, 16), "b.weight": (-32, 16), "down.weight": (16, -64)},
    "no_groups_of_queries": {"a.weight": (-60, 16), "o.weight": (16, -32)},
    "fused_name_of_a_row": {"in_proj.weight": (16, -64)},
    "indivisible_keys": {"up.weight": (-34, 16), "down.weight": (16, -32)},
}  # fmt: skip
FUSED: dict[str, tuple[Shapes, str]] = {
    "gate_up": (
        {"gu.weight": (-128, 16), "gu.bias": (-128,), "down.weight": (16, -64)},
        "gu.weight [128, 16] is cut along dimension 0 over 2 ranks, as one matrix or as each of several fused ones "
        "([gate | up], [query | key | value]): down.weight takes 64 inputs, fewer than its 128 outputs. Give the "
        "module class `plan = {'gu.weight': ..., 'gu.bias': ...}` with Shard(0) for one matrix, "
        "StridedShard(0, 2) for two fused ones, or QKVHeads(...).",
    ),
    "odd_halves": ({"a.weight": (-36, 16), "o.weight": (16, -18)}, "a.weight [36, 16] is cut along dimension 0"),
    "mha": ({"a.weight": (-96, 16), "o.weight": (16, -32)}, "a.weight [96, 16] is cut along dimension 0"),
    "gqa": ({"a.weight": (-64, 16), "o.weight": (16, -32)}, "o.weight takes 32 inputs, fewer than its 64 outputs"),
    "gqa_by_fours": ({"a.weight": (-48, 16), "o.weight": (16, -32)}, "takes 32 inputs, fewer than its 48 outputs"),
    "own_parameters": ({"wqkv": (-96, 16), "wo": (16, -32)}, "`plan = {'wqkv': ...}`"),
    "experts": ({"w13": (4, -64, 16), "w2": (4, 16, -32)}, "w13 [4, 64, 16] is cut along dimension 1"),
    "experts_transposed": ({"w13": (4, 16, -64), "w2": (4, -32, 16)}, "with Shard(2) for one matrix"),
    "block": (
        {"attn.qkv.weight": (-96, 16), "attn.out.weight": (16, -32), "mlp.up.weight": (-64, 16),
         "mlp.down.weight": (16, -64)},
        "attn.qkv.weight [96, 16]",
    ),
    "second_of_a_block": (
        {"mlp.up.weight": (-64, 16), "mlp.down.weight": (16, -64), "moe.x.weight": (-32, 16),
         "moe.y.weight": (16, -16)},
        "moe.x.weight [32, 16]",
    ),
    "as_wide_as_another": (
        {"attn.q.weight": (-32, 16), "attn.o.weight": (16, -32), "mlp.x.weight": (-64, 16), "mlp.y.weight": (16, -32)},
        "mlp.x.weight [64, 16]",
    ),
    "name_alone": ({"attn.qkv_proj.weight": (-96, 16)}, "its name says several"),
    "in_proj": ({"in_proj_weight": (-96, 16), "out_proj.weight": (16, 32)}, "its name says several"),
    "gate_up_proj": ({"gate_up_proj": (4, 16, -64)}, "its name says several"),
}  # fmt: skip


class Of(nn.Module):
    """Has parameters of these names; `embedding` is an nn.Embedding's."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__()
        for name, shape in shapes.items():
            *owners, leaf = name.split(".")
            module: nn.Module = self
            for owner in owners:
                if not hasattr(module, owner):
                    setattr(module, owner, nn.Embedding(1, 1) if owner == "embedding" else nn.Module())
                module = getattr(module, owner)
            setattr(module, leaf, nn.Parameter(torch.empty(shape)))


def check(shapes: Shapes, plan: Mapping[str, Placement] | None = None, size: int = 2) -> str:
    """What is said of the guesses on so many ranks."""
    full = {name: tuple(map(abs, shape)) for name, shape in shapes.items()}
    local = Of({name: tuple(-n // size if n < 0 else n for n in shape) for name, shape in shapes.items()})
    placed = place_all(plan or {}, local.state_dict(), full, size)
    check_guesses(local, placed, size)
    return said(placed)


@pytest.mark.parametrize("name", PLAIN)
def test_plain_modules_are_placed_by_their_shapes_and_told(name: str) -> None:
    text = check(PLAIN[name])
    cut = {name: shape for name, shape in PLAIN[name].items() if min(shape) < 0}
    assert re.findall(r"([\w.]+) \[[\d, ]+\] as Shard\((\d)\)", text) == [
        (name, str(next(dim for dim, n in enumerate(shape) if n < 0))) for name, shape in cut.items()
    ]


@pytest.mark.parametrize("name", FUSED)
def test_what_may_be_several_matrices_is_refused(name: str) -> None:
    shapes, text = FUSED[name]
    with pytest.raises(UsageError, match=re.escape(text)):
        check(shapes)


@pytest.mark.parametrize("placement", [Shard(0), StridedShard(0, 2)])
def test_a_plan_decides(placement: Placement) -> None:
    shapes = FUSED["gate_up"][0]
    plan = {"gu.weight": placement, "gu.bias": placement}
    told = "placed by their shapes alone: down.weight [16, 64] as Shard(1); "
    assert check(shapes, plan) == told + "a `plan` of the module class says it otherwise."
    assert check(shapes, plan | {"down.weight": Shard(1)}) == ""


@pytest.mark.parametrize("placement", [StridedShard(0, 2), QKVHeads(32, 16, 2)])
def test_a_bias_is_not_guessed_where_its_weight_is_fused(placement: Placement) -> None:
    text = rf"^gu.bias \[128\] is cut along dimension 0 .*: gu.weight is placed as {re.escape(str(placement))}\. Give"
    with pytest.raises(UsageError, match=text):
        check(FUSED["gate_up"][0], {"gu.weight": placement})


class Halves(nn.Module):
    """[gate | up] fused in one matrix, as each rank's own halves."""

    def __init__(self, plan: Mapping[str, Placement] | None = None, wide: int = 2) -> None:
        super().__init__()
        size = dist.get_world_size() if dist.is_initialized() else 1
        self.first = nn.Linear(8, 16 * wide // size, bias=False)
        self.second = nn.Linear(16 // size, 8, bias=False)
        self.wide, self.plan = wide, plan or {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = self.first(x)
        if self.wide == 2:
            gate, up = gate.chunk(2, dim=-1)
            gate = torch.relu(gate) * up
        y = self.second(gate)
        if dist.is_initialized():
            dist.all_reduce(y)
        return y


def whole(path: Path, wide: int) -> Callable[[torch.Tensor], torch.Tensor]:
    module = Halves(wide=wide)
    module.load_state_dict(torch.load(path, weights_only=True))
    return module.requires_grad_(False)


def test_a_built_module_says_what_was_guessed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    x, path = torch.randn(3, 8, generator=torch.Generator().manual_seed(0)), tmp_path / "full.pt"
    guessed = "placed by their shapes alone: first.weight [16, 8] as Shard(0), second.weight [8, 16] as Shard(1); "
    with build_module(Halves, [(x,)], {"wide": 1}, 2, checkpoint_path=str(path)) as module:
        assert [record.message for record in caplog.records if record.levelno == logging.WARNING] == [
            f"build_module: {guessed}a `plan` of the module class says it otherwise."
        ]
        validate_accuracy(module, [(x,)], cpu_callable=whole(path, 1))
        with pytest.raises(AssertionError, match=r"elements differ(?s:.*)\nIts parameters were placed by their shapes"):
            validate_accuracy(module, [(x,)], expected_outputs=[x])


def test_a_built_module_with_a_fused_weight_needs_a_plan(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    x, path = torch.randn(3, 8, generator=torch.Generator().manual_seed(0)), tmp_path / "full.pt"
    with pytest.raises(UsageError, match=r"^first.weight \[32, 8\] is cut along dimension 0 over 2 ranks"):
        build_module(Halves, [(x,)], {}, 2, checkpoint_path=str(path))
    plan = {"first.weight": StridedShard(0, 2), "second.weight": Shard(1)}
    with build_module(Halves, [(x,)], {"plan": plan}, 2, checkpoint_path=str(path)) as module:
        validate_accuracy(module, [(x,)], cpu_callable=whole(path, 2))
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
