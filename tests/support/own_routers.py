"""A block of experts of one's own with routers of many forms, right and wrong, and its verdicts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ladder import own_verdicts
from torch import nn

from tp_harness.case.case import Case
from tp_harness.parallel.group import current_group
from tp_harness.parallel.placements import Shard
from tp_harness.results.result import Result

EXPERTS, K, HIDDEN, WIDE = 16, 2, 24, 16
Choose = Callable[["MoE", torch.Tensor], torch.Tensor]
Patch = pytest.MonkeyPatch


class MoE(nn.Module):
    """Experts cut along their width, and a router of the form that `choose` gives; ranks may have another one."""

    choose: Any
    on_ranks: Any = None
    returned = False
    chunks = 1

    def __init__(self) -> None:
        super().__init__()
        self.group = current_group()
        local = WIDE // self.group.size
        self.gate = nn.Linear(HIDDEN, EXPERTS, bias=False)
        self.correction = nn.Parameter(torch.zeros(EXPERTS))
        self.router_logits, self.router_scores, self.chosen = nn.Identity(), nn.Identity(), nn.Identity()
        self.router = Returning()
        self.up = nn.Parameter(torch.zeros(EXPERTS, HIDDEN, local))
        self.down = nn.Parameter(torch.zeros(EXPERTS, local, HIDDEN))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = []
        for at, chunk in enumerate(x.chunk(self.chunks)):
            self.at = self.router.at = at
            parts.append(self.of_chunk(chunk))
        return torch.cat(parts)

    def of_chunk(self, x: torch.Tensor) -> torch.Tensor:
        choose = type(self).on_ranks if self.group.size > 1 and type(self).on_ranks else type(self).choose
        if self.returned:
            _, weight, chosen = self.router(self.gate(x), self.correction, choose)
        else:
            logits = self.router_logits(self.gate(x))
            chosen = self.chosen(choose(self, logits))
            weight = logits.gather(-1, chosen).sigmoid()
        out = torch.zeros_like(x)
        for expert in range(EXPERTS):
            token, slot = (chosen == expert).nonzero(as_tuple=True)
            y = torch.relu(x[token] @ self.up[expert]) @ self.down[expert]
            out = out.index_add(0, token, y * weight[token, slot, None])
        return self.group.all_reduce(out)


class Returning(nn.Module):
    """A router as libraries have them: logits, weights and expert numbers are returned."""

    at = 0  # the number of its call

    def forward(self, logits: torch.Tensor, correction: torch.Tensor, choose: Any) -> tuple[torch.Tensor, ...]:
        self.correction = correction
        chosen = choose(self, logits)
        return logits, logits.gather(-1, chosen).sigmoid(), chosen


def corrected(module: Any, logits: torch.Tensor) -> torch.Tensor:
    return logits.sigmoid() + 0.5 * module.correction.to(logits.dtype)


def in_groups(mask: float) -> Any:
    """Two of four groups stay, by the sum of their best two experts."""

    def choose(module: Any, logits: torch.Tensor) -> torch.Tensor:
        scores = corrected(module, logits)
        groups = scores.unflatten(-1, (4, -1)).topk(2, -1).values.sum(-1).topk(2, -1).indices
        left_out = torch.ones(len(logits), 4, dtype=torch.bool).scatter(1, groups, value=False)
        return scores.masked_fill(left_out.repeat_interleave(4, 1), mask).topk(K, -1).indices

    return choose


def skipping(choose: Any) -> Any:
    """The same, but the first expert of each pair is the next one."""
    return lambda module, logits: (choose(module, logits) + (torch.arange(K) == 0)) % EXPERTS


def skipping_at(at: int, choose: Any) -> Any:
    """The same, in one chunk of the tokens only."""
    return lambda module, logits: (skipping(choose) if module.at == at else choose)(module, logits)


def padded(value: float) -> Any:
    """The last expert is none, as its logit says."""
    return lambda module, logits: (
        torch.topk(
            torch.where(torch.arange(EXPERTS) == EXPERTS - 1, torch.tensor(value, dtype=logits.dtype), logits), K
        ).indices
    )


def best_by_hand(scores: torch.Tensor) -> torch.Tensor:
    """The best K by comparing each with each; of equal ones the first."""
    scores = scores.double() - 1e-9 * torch.arange(scores.shape[-1])
    return ((scores[:, None, :] > scores[..., None]).sum(-1) < K).nonzero()[:, 1].view(-1, K)


def topped(module: Any, logits: torch.Tensor) -> torch.Tensor:
    return logits.topk(K, -1).indices


FORMS: dict[str, Any] = {
    "topk": topped,
    "sigmoid-and-correction": lambda m, x: corrected(m, x).topk(K, -1).indices,
    "groups-masked-by-infinity": in_groups(float("-inf")),
    "groups-masked-by-a-number": in_groups(-1e9),
    "sort": lambda m, x: corrected(m, x).sort(descending=True, dim=-1)[1][:, :K],
    "argsort": lambda m, x: torch.argsort(corrected(m, x), -1, True)[:, :K],
    "smallest": lambda m, x: (-corrected(m, x)).topk(K, -1, largest=False)[1],
    "padded-by-infinity": padded(float("-inf")),
    "padded-by-a-number": padded(-1e9),
    "forced": lambda m, x: (x + 1e9 * (torch.arange(EXPERTS) == 3)).topk(K, -1).indices,
}
WRONG: dict[str, Any] = {  # beside `skipping`
    "sigmoid-and-correction": topped,
    "groups-masked-by-infinity": lambda m, x: corrected(m, x).topk(K, -1).indices,
    "padded-by-a-number": lambda m, x: padded(-1e9)(m, -x),
    "forced": lambda m, x: (1e9 * (torch.arange(EXPERTS) == 3) - x).topk(K, -1).indices,
}


def verdicts(folder: Path, patch: Patch, form: Any, on_ranks: Any = None, **fields: Any) -> dict[str, Result]:
    """By dtype, of ranks that choose as `on_ranks` does, or as the reference."""
    of_module = {name: fields.pop(name) for name in ("returned", "chunks") if name in fields}
    module = type("Own", (MoE,), {"choose": form, "on_ranks": on_ranks, **of_module})
    case = Case(
        name="own",
        reference=module,
        sharded=module,
        plan={"up": Shard(2), "down": Shard(1)},
        inputs=lambda generator: (torch.randn(256, HIDDEN, generator=generator),),
        **({"routing": ("",)} | fields),
    )
    return own_verdicts(folder, patch, case)
