"""The order of a choice: weights that were made beside it must be those of the experts at the same places."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ladder import own_verdicts
from torch import nn

from tp_harness.case.case import Case
from tp_harness.case.routing import Router
from tp_harness.case.top_k import in_order_of
from tp_harness.parallel.group import current_group
from tp_harness.parallel.placements import Shard
from tp_harness.results.result import Status

EXPERTS, K, HIDDEN, WIDE = 8, 2, 16, 16
WAYS: dict[str, tuple[Any, Status]] = {
    "as-the-reference": (lambda weight, chosen: (weight, chosen), Status.PASS),
    "both-turned": (lambda weight, chosen: (weight.flip(-1), chosen.flip(-1)), Status.PASS),
    "experts-turned": (lambda weight, chosen: (weight, chosen.flip(-1)), Status.MISMATCH),
    "experts-sorted": (lambda weight, chosen: (weight, chosen.sort(-1).values), Status.MISMATCH),
    "weights-turned": (lambda weight, chosen: (weight.flip(-1), chosen), Status.MISMATCH),
}


class MoE(nn.Module):
    """Weights are the values of torch.topk, not looked up again for what was chosen."""

    way: Any = WAYS["as-the-reference"][:1]
    returned = False

    def __init__(self) -> None:
        super().__init__()
        self.group = current_group()
        local = WIDE // self.group.size
        self.gate, self.router = nn.Linear(HIDDEN, EXPERTS, bias=False), Returning()
        self.router_logits, self.chosen = nn.Identity(), nn.Identity()
        self.up, self.down = (
            nn.Parameter(torch.zeros(EXPERTS, *shape)) for shape in ((HIDDEN, local), (local, HIDDEN))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        (way,) = self.way
        if self.returned:
            _, weight, chosen = self.router(self.gate(x), way)
        else:
            best = self.router_logits(self.gate(x)).topk(K, -1)
            weight, chosen = way(best.values.softmax(-1), best.indices)
            chosen = self.chosen(chosen)
        out = torch.zeros_like(x)
        for expert in range(EXPERTS):
            token, slot = (chosen == expert).nonzero(as_tuple=True)
            y = torch.relu(x[token] @ self.up[expert]) @ self.down[expert]
            out = out.index_add(0, token, y * weight[token, slot, None])
        return self.group.all_reduce(out)


class Returning(nn.Module):
    """Logits, weights and expert numbers."""

    def forward(self, logits: torch.Tensor, way: Any) -> tuple[torch.Tensor, ...]:
        best = logits.topk(K, -1)
        return logits, *way(best.values.softmax(-1), best.indices)


@pytest.mark.parametrize("returned", [False, True], ids=["taps", "returned"])
@pytest.mark.parametrize("way", WAYS)
def test_weights_belong_to_their_experts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str, returned: bool
) -> None:
    case = Case(
        name="own",
        reference=type("Own", (MoE,), {"returned": returned}),
        sharded=type("OnRanks", (MoE,), {"returned": returned, "way": WAYS[way][:1]}),
        plan={"up": Shard(2), "down": Shard(1)},
        inputs=lambda generator: (torch.randn(64, HIDDEN, generator=generator),),
        routing=(Router("router", outputs=("logits", "weights", "chosen")) if returned else "",),
    )
    assert {r.status for r in own_verdicts(tmp_path, monkeypatch, case).values()} == {WAYS[way][1]}


@pytest.mark.parametrize(
    ("own", "right", "expected"),
    [
        ([[3, 1, 2]], [[1, 2, 3]], [[3, 1, 2]]),
        ([[3, 7, 2]], [[1, 2, 3]], [[3, 1, 2]]),
        ([[7, 2, 8]], [[1, 2, 3]], [[1, 2, 3]]),
        ([[2, 2, 2]], [[1, 2, 3]], [[2, 1, 3]]),
        ([[9, 8], [4, 5]], [[1, 2], [5, 4]], [[1, 2], [4, 5]]),
    ],
)
def test_only_other_experts_are_replaced(own: list[Any], right: list[Any], expected: list[Any]) -> None:
    found = in_order_of(torch.tensor(own, dtype=torch.int32), torch.tensor(right))
    assert (found.dtype, found.tolist()) == (torch.int32, expected)
