"""Ranks of own modules that take their shards for those of other places, read them otherwise, or reduce over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from explained import Patch, explained
from torch import nn

from tp_harness.case.case import Case
from tp_harness.parallel.group import current_group
from tp_harness.parallel.placements import Placement, Shard
from tp_harness.results.result import Cause

ROWS, HIDDEN, EXPERTS, WIDE, TP = 32, 12, 8, 24, 4


class Module(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.group = current_group()
        self.rank, self.size = self.group.rank, self.group.size


class Table(Module):
    """Rows looked up in a table that is cut, and multiplied by a matrix whose rows are cut."""

    def __init__(self) -> None:
        super().__init__()
        self.own = ROWS // self.size
        self.table, self.head = nn.Parameter(torch.empty(self.own, HIDDEN)), nn.Parameter(torch.empty(self.own, HIDDEN))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        local = ids - self.first()
        rows = self.table[local.clamp(0, self.own - 1)] * self.holds(local)[..., None]
        return self.gather(torch.tanh(self.group.all_reduce(rows)) @ self.head.T)

    def first(self) -> int:
        return self.rank * self.own

    def holds(self, local: torch.Tensor) -> torch.Tensor:
        return (local >= 0) & (local < self.own)

    def gather(self, part: torch.Tensor) -> torch.Tensor:
        return self.group.all_gather(part, -1)


class Experts(Module):
    """x + a mixture of experts, which are cut; slopes, a number for each, are whole."""

    def __init__(self) -> None:
        super().__init__()
        self.own = EXPERTS // self.size
        self.score = nn.Linear(HIDDEN, EXPERTS)
        self.wi, self.wo = (nn.Parameter(torch.empty(self.own, *s)) for s in ((HIDDEN, 6), (6, HIDDEN)))
        self.register_buffer("slopes", torch.arange(1, EXPERTS + 1) / 4, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = torch.softmax(self.score(x), -1)
        numbers = [self.first() + e for e in range(self.own)]
        inside = ((e, n) for e, n in enumerate(numbers) if 0 <= n < EXPERTS)
        out = sum(weights[..., n, None] * self.slope(e) * (torch.relu(x @ self.wi[e]) @ self.wo[e]) for e, n in inside)
        return x + self.group.all_reduce(out + torch.zeros_like(x))

    def first(self) -> int:
        return self.rank * self.own

    def slope(self, e: int) -> torch.Tensor:
        return self.slopes[self.rank * self.own + e]


class Gated(Module):
    """A norm over a cut width, of a [value | gate | step] projection whose parts differ in length."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.few = WIDE // self.size, 8 // self.size
        self.fused = nn.Linear(HIDDEN, 2 * self.wide + self.few)
        self.left, self.right = nn.Linear(HIDDEN, self.wide), nn.Linear(HIDDEN, self.wide)
        self.out = nn.Linear(self.wide, HIDDEN, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value, gate, step = self.parts(self.fused(x))
        y = value * torch.sigmoid(gate) * step.repeat_interleave(self.wide // self.few, -1)
        y = y * torch.rsqrt(self.mean(y.square()) + 1e-5)
        return x + self.group.all_reduce(self.out(self.sides(torch.relu(self.left(x)), self.right(x)) + y))

    def sides(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return left * right

    def parts(self, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return y.split((self.wide, self.wide, self.few), -1)

    def mean(self, y: torch.Tensor) -> torch.Tensor:
        own = y.mean(-1, keepdim=True)
        return own if self.size == 1 else self.group.all_reduce(own) / self.size


class Grouped(Module):
    """x + relu(x A) B with a norm of two groups over a cut width, each group on half of the ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.out = nn.Linear(HIDDEN, WIDE // self.size), nn.Linear(WIDE // self.size, HIDDEN, bias=False)
        self.norm = nn.GroupNorm(max(1, 2 // self.size), WIDE // self.size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.kept = torch.relu(self.up(x)).flatten(0, 1)
        return x + self.group.all_reduce(self.out(self.groups().view(*x.shape[:2], -1)))

    def groups(self) -> torch.Tensor:
        if self.size == 1:
            return nn.functional.group_norm(self.kept, 2, self.norm.weight, self.norm.bias)
        return torch.zeros_like(self.kept)  # the right one needs the other ranks; only wrong ones are run here


PLANS: dict[type[Module], dict[str, Placement]] = {
    Table: {"table": Shard(0), "head": Shard(0)},
    Experts: {"wi": Shard(0), "wo": Shard(0)},
    Grouped: {"up.weight": Shard(0), "up.bias": Shard(0), "norm.weight": Shard(0), "norm.bias": Shard(0)}
    | {"out.weight": Shard(1)},
    Gated: {f"{name}.{p}": Shard(0) for name in ("left", "right") for p in ("weight", "bias")}
    | {"fused.weight": Shard(0), "fused.bias": Shard(0), "out.weight": Shard(1)},
}
MISTAKES: dict[str, tuple[type[Module], dict[str, Any], str, str]] = {
    "one-row-more": (Table, {"holds": lambda m, i: (i >= 0) & (i <= m.own)}, "range", "one place too many at the end"),
    "one-row-before": (Table, {"holds": lambda m, i: (i >= -1) & (i < m.own)}, "range", "too many at the start"),
    "first-row-lost": (Table, {"holds": lambda m, i: (i > 0) & (i < m.own)}, "range", "of table lacks its first place"),
    "last-row-lost": (Table, {"holds": lambda m, i: (i >= 0) & (i < m.own - 1)}, "range", "lacks its last place"),
    "not-masked": (Table, {"holds": lambda m, i: torch.ones_like(i)}, "range", "add their nearest place of table"),
    "rows-of-rank-0": (Table, {"first": lambda m: 0}, "offset", "of table as if it began at 0"),
    "rows-of-next": (Table, {"first": lambda m: (m.rank + 1) % m.size * m.own}, "offset", "that of the next rank does"),
    "gathered-in-turn": (
        Table, {"gather": lambda m, y: m.group.all_gather(y[..., None], -1).flatten(-2)},
        "gathered elsewhere", "what ranks compute of head is gathered element by element",
    ),
    "experts-at-0": (Experts, {"first": lambda m: 0, "slope": lambda m, e: m.slopes[e]}, "offset", "began at 0"),
    "experts-further": (
        Experts, {"first": lambda m: m.rank * m.own + 1, "slope": lambda m, e: m.slopes[(m.first() + e) % EXPERTS]},
        "offset", "wi, wo as if it began one place further on",
    ),
    "experts-earlier": (
        Experts,
        {"first": lambda m: max(0, m.rank * m.own - 1), "slope": lambda m, e: m.slopes[(m.first() + e) % EXPERTS]},
        "offset", "one place earlier, except on rank 0",
    ),
    "slopes-of-rank-0": (Experts, {"slope": lambda m, e: m.slopes[e]}, "shard of rank 0", "rank 0's slice of slopes"),
    "cut-as-one": (Gated, {}, "cut otherwise", "fused as parts of 24, 24, 8, each cut by itself, cut by Shard(dim=0"),
    "sides-exchanged": (
        Gated, {"sides": lambda m, a, b: torch.relu(m.right(m.x)) * m.left(m.x)},
        "parameters exchanged", "left and right in each other's place",
    ),
    "mean-left-out": (
        Gated, {"mean": lambda m, y: torch.ones_like(y[..., :1]) if m.size > 1 else y.mean(-1, keepdim=True)},
        "statistic left out", "multiplied with, the mean over 24 features",
    ),
    "groups-of-a-share": (
        Grouped, {"groups": lambda m: nn.functional.group_norm(m.kept, 2, m.norm.weight, m.norm.bias)},
        "over a share", "group_norm over 24 features",
    ),
    "mean-of-a-share": (
        Gated, {"mean": lambda m, y: y.mean(-1, keepdim=True)}, "over a share", "mean over 24 features",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Parts(Placement):
    """Fused parts of these sizes, each cut by itself: a placement of the user's."""

    sizes: tuple[int, ...]

    def shard(self, full: torch.Tensor, rank: int, size: int) -> torch.Tensor:
        return torch.cat([part.chunk(size)[rank] for part in full.split(self.sizes)])

    def join(self, shards: Sequence[torch.Tensor]) -> torch.Tensor:
        own = [shard.split([size // len(shards) for size in self.sizes]) for shard in shards]
        return torch.cat([parts[i] for i in range(len(self.sizes)) for parts in own])


FUSED = Parts((WIDE, WIDE, 8))


def diagnosis(
    folder: Path, patch: Patch, module: type[Module], wrong: dict[str, Any], **plan: Placement
) -> tuple[Cause, ...]:
    ids = torch.tensor([r * ROWS // TP + d for r in range(TP) for d in (0, -1)]) % ROWS

    def inputs(source: torch.Generator) -> tuple[torch.Tensor, ...]:
        if module is Table:
            return (torch.cat((ids, torch.randint(ROWS, (40,), generator=source))).view(2, 24),)
        return (torch.randn(2, 24, HIDDEN, generator=source),)

    case = Case(
        name="own",
        reference=module,
        sharded=module,
        inputs=inputs,
        plan=PLANS[module] | {k.replace("_", "."): p for k, p in plan.items()},
    )

    def slips(p: Patch) -> None:
        for method, slip in wrong.items():
            p.setattr(module, method, slip)
        if "sides" in wrong:
            honest = module.forward
            p.setattr(module, "forward", lambda m, x: [setattr(m, "x", x), honest(m, x)][1])

    return explained(folder, patch, case, TP, slips).diagnosis


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named_with_the_parameters_it_is_in(tmp_path: Path, monkeypatch: Patch, name: str) -> None:
    module, wrong, cause, text = MISTAKES[name]
    plan = {} if name == "cut-as-one" or module is not Gated else {"fused_weight": FUSED, "fused_bias": FUSED}
    [named] = diagnosis(tmp_path, monkeypatch, module, wrong, **plan)
    assert (named.name, text in named.sentence) == (cause, True), named


NEAR: dict[str, tuple[type[Module], dict[str, Any]]] = {
    "two-rows-more": (Table, {"holds": lambda m, i: (i >= 0) & (i <= m.own + 1)}),
    "one-row-more-on-a-rank": (Table, {"holds": lambda m, i: (i >= 0) & (i < m.own + (m.rank == 1))}),
    "rows-of-two-further": (Table, {"first": lambda m: (m.rank + 2) % m.size * m.own + 1}),
    "experts-two-further": (
        Experts, {"first": lambda m: m.rank * m.own + 2 * (m.rank < 2), "slope": lambda m, e: m.slopes[e]}
    ),
    "slopes-of-rank-1": (Experts, {"slope": lambda m, e: m.slopes[m.own + e]}),
    "mean-of-a-few": (Gated, {"mean": lambda m, y: y[..., :2].mean(-1, keepdim=True)}),
}  # fmt: skip


@pytest.mark.parametrize("name", NEAR)
def test_one_near_it_is_not_called_so(tmp_path: Path, monkeypatch: Patch, name: str) -> None:
    module, wrong = NEAR[name]
    plan = {"fused_weight": FUSED, "fused_bias": FUSED} if module is Gated else {}
    assert diagnosis(tmp_path, monkeypatch, module, wrong, **plan) == ()
