"""Routers of the transformers library, declared by the names of their outputs, whose modules are left as they are."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from ladder import own_verdicts
from torch import nn

from tp_harness import Router
from tp_harness.case.case import Case
from tp_harness.parallel.group import current_group
from tp_harness.parallel.placements import Placement, Shard, StridedShard
from tp_harness.results.result import Status

EXPERTS, K, HIDDEN, WIDE = 16, 3, 32, 24
RETURNED = ("logits", "weights", "chosen")


class Family(NamedTuple):
    """How a family calls its block of experts, its configuration and the sizes in it."""

    block: str
    config: str
    sizes: dict[str, int]
    outputs: tuple[str, ...] = RETURNED
    gate: str = "gate"
    correction: str = ""


GROUPED = {"n_group": 4, "topk_group": 2, "n_shared_experts": 1}
FAMILIES = {
    "qwen3_moe": Family(
        "Qwen3MoeSparseMoeBlock", "Qwen3MoeConfig", {"num_experts": EXPERTS, "moe_intermediate_size": WIDE}
    ),
    "mixtral": Family(
        "MixtralSparseMoeBlock", "MixtralConfig", {"num_local_experts": EXPERTS, "intermediate_size": WIDE}
    ),
    "deepseek_v3": Family(
        "DeepseekV3MoE",
        "DeepseekV3Config",
        {"n_routed_experts": EXPERTS, "moe_intermediate_size": WIDE} | GROUPED,
        correction="gate.e_score_correction_bias",
    ),
    "glm4_moe": Family(
        "Glm4MoeMoE",
        "Glm4MoeConfig",
        {"n_routed_experts": EXPERTS, "moe_intermediate_size": WIDE} | GROUPED,
        correction="gate.e_score_correction_bias",
    ),
    "ernie4_5_moe": Family(
        "Ernie4_5_MoeSparseMoeBlock",
        "Ernie4_5_MoeConfig",
        {"moe_num_experts": EXPERTS, "moe_k": K, "moe_intermediate_size": WIDE, "moe_num_shared_experts": 0},
        correction="gate.moe_statics.e_score_correction_bias",
    ),
}


def block(name: str, ranks: int) -> nn.Module:
    """A block of experts cut along their width over so many ranks; its correction, a buffer, is not zero."""
    family = FAMILIES[name]
    module = importlib.import_module(f"transformers.models.{name}.modeling_{name}")
    sizes = {key: size // ranks if size == WIDE else size for key, size in family.sizes.items()}
    config = getattr(importlib.import_module(f"transformers.models.{name}.configuration_{name}"), family.config)(
        hidden_size=HIDDEN, num_experts_per_tok=K, **sizes
    )
    config._experts_implementation = "eager"
    built: nn.Module = getattr(module, family.block)(config)
    if family.correction:
        correction = dict([*built.named_parameters(), *built.named_buffers()])[family.correction]
        correction.data = torch.randn(correction.shape, generator=torch.Generator().manual_seed(5)) / 4
    return built


class Reduced(nn.Module):
    """The block, summed over ranks where there are several."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.group = current_group()
        self.moe = block(name, self.group.size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.group.all_reduce(self.moe(x))


def uncorrected(correction: str) -> Callable[[Any, Any], None]:
    """The correction is missing on the ranks; where there is none, other experts are chosen."""

    def edit(module: Any, _group: object) -> None:
        if correction:
            dict([*module.moe.named_parameters(), *module.moe.named_buffers()])[correction].zero_()
        else:
            module.moe.gate.register_forward_hook(lambda _m, _i, out: (out[0], out[1], (out[2] + 1) % EXPERTS))

    return edit


@pytest.mark.parametrize("name", FAMILIES)
def test_a_router_of_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    family = FAMILIES[name]

    shared = {"gate_proj.weight": Shard(0), "up_proj.weight": Shard(0), "down_proj.weight": Shard(1)}
    plan: dict[str, Placement] = {"moe.experts.gate_up_proj": StridedShard(1, 2), "moe.experts.down_proj": Shard(2)}
    if "n_shared_experts" in family.sizes:
        plan |= {f"moe.shared_experts.{parameter}": cut for parameter, cut in shared.items()}
    right = Case(
        name="own",
        reference=lambda: Reduced(name),
        sharded=lambda: Reduced(name),
        plan=plan,
        inputs=lambda generator: (torch.randn(1, 128, HIDDEN, generator=generator),),
        routing=(Router(f"moe.{family.gate}", outputs=family.outputs),),
    )
    wrong = replace(right, edit=uncorrected(family.correction))
    for case, status in ((right, Status.PASS), (wrong, Status.MISMATCH)):
        results = own_verdicts(tmp_path / status.value, monkeypatch, case)
        assert {dtype: (r.status, r.reason) for dtype, r in results.items() if r.status is not status} == {}
