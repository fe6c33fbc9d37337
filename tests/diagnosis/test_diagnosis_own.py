"""Known mistakes in own modules: their outputs, inputs and parameters tell, and no tap is needed."""

from __future__ import annotations

from collections.abc import Callable
from math import log
from pathlib import Path
from typing import Any

import pytest
import torch
from explained import Patch, explained
from torch import nn
from torch.nn import functional as F  # noqa: N812

from tp_harness.case.case import Case
from tp_harness.case.family_case import FamilyCase
from tp_harness.faults.ways import sum_of_pair
from tp_harness.parallel.group import current_group
from tp_harness.parallel.placements import Placement, Shard, StridedShard


class Own(nn.Module):
    """x A + b over ranks that each hold some rows of A."""

    def __init__(self) -> None:
        super().__init__()
        self.group = current_group()
        self.a, self.b = nn.Parameter(torch.empty(12, 64 // self.group.size)), nn.Parameter(torch.empty(12))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        part = F.linear(x.chunk(self.group.size, -1)[self.group.rank], self.a.to(x.dtype))
        return self.finish(part, self.b.to(x.dtype))

    def finish(self, part: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return self.group.all_reduce(part) + bias


Finish = Callable[[Any, torch.Tensor, torch.Tensor], torch.Tensor]
OWN: dict[str, tuple[Finish, set[str]]] = {
    "bias-on-every-rank": (lambda m, part, bias: m.group.all_reduce(part + bias), {"bias x tp"}),
    "bias-left-out": (lambda m, part, bias: m.group.all_reduce(part), {"bias dropped"}),
    "bias-divided": (lambda m, part, bias: m.group.all_reduce(part) + bias / m.group.size, {"bias / tp"}),
    "not-reduced": (lambda m, part, bias: part + bias, {"all-reduce missing"}),
    "in-pairs": (lambda m, part, bias: sum_of_pair(m.group, part) + bias, {"reduced in subgroups"}),
    "twice": (lambda m, part, bias: m.group.all_reduce(m.group.all_reduce(part) + bias), {"times tp"}),
    "mean": (lambda m, part, bias: (m.group.all_reduce(part) + bias) / m.group.size, {"divided by tp"}),
    "blocks": (lambda m, part, bias: (m.group.all_reduce(part) + bias).roll(3, -1), {"blocks permuted"}),
    "axes": (
        lambda m, part, bias: (m.group.all_reduce(part) + bias).transpose(0, 1).reshape(*part.shape),
        {"axes swapped"},
    ),
    "mean-and-bias": (lambda m, part, bias: m.group.all_reduce(part) / m.group.size + bias, {"divided by tp"}),
    "twice-and-bias": (lambda m, part, bias: m.group.all_reduce(m.group.all_reduce(part)) + bias, {"times tp"}),
    "rows-flipped": (lambda m, part, bias: (m.group.all_reduce(part) + bias).flip(0), {"tokens permuted"}),
    "features-interleaved": (
        lambda m, part, bias: (m.group.all_reduce(part) + bias).unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2),
        {"features permuted"},
    ),
    "log-of-ranks": (lambda m, part, bias: m.group.all_reduce(part) + bias + log(m.group.size), {"log tp"}),
    "one-more": (lambda m, part, bias: m.group.all_reduce(part) + bias + 1, {"constant added"}),
    "one-more-for-some": (lambda m, part, bias: m.group.all_reduce(part) + bias + (part[..., :1] > 0), set()),
    "gathered-along-tokens": (
        lambda m, part, bias: torch.cat((m.group.all_reduce(part) + bias).chunk(m.group.size, -1), 1).reshape(
            part.shape
        ),
        {"gathered elsewhere"},
    ),
    "nothing-known": (lambda m, part, bias: m.group.all_reduce(part) + bias.square(), set()),
}


@pytest.mark.parametrize("name", OWN)
def test_a_user_s_module_needs_no_tap(tmp_path: Path, monkeypatch: Patch, name: str) -> None:
    finish, causes = OWN[name]
    case = FamilyCase(
        name="own",
        reference=Own,
        sharded=Own,
        inputs=lambda generator: (torch.randn(2, 24, 64, generator=generator),),
        plan={"a": Shard(1)},
    )
    result = explained(tmp_path, monkeypatch, case, 4, lambda patch: patch.setattr(Own, "finish", finish))
    assert result.first_divergence is not None
    assert result.first_divergence.tensor == "output.0"
    assert {cause.name for cause in result.diagnosis} == causes


class Fused(nn.Module):
    """x + (gate * up) D, gate and up fused in one matrix: as halves of it, or as pairs."""

    def __init__(self, halves: bool = True) -> None:
        super().__init__()
        self.group, self.halves = current_group(), halves
        self.fused, self.down = nn.Linear(12, 48 // self.group.size), nn.Linear(24 // self.group.size, 12, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.fused(x)
        gate, up = y.chunk(2, -1) if self.halves else (y[..., ::2], y[..., 1::2])
        return self.finish(x, F.linear(self.activate(gate, up), self.down.weight))

    def activate(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        return torch.relu(gate) * up

    def finish(self, x: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
        return x + self.group.all_reduce(part)


class Pairs(Fused):
    def __init__(self) -> None:
        super().__init__(halves=False)


def pairs_of(m: Fused, y: torch.Tensor) -> torch.Tensor:
    gate, up = (y[..., ::2], y[..., 1::2]) if m.group.size > 1 else y.chunk(2, -1)
    return torch.relu(gate) * up


def halves_of(m: Fused, y: torch.Tensor) -> torch.Tensor:
    gate, up = y.chunk(2, -1) if m.group.size > 1 else (y[..., ::2], y[..., 1::2])
    return torch.relu(gate) * up


HALVES = StridedShard(0, 2)
FUSED: dict[str, tuple[type[Fused], Placement, dict[str, Any], str, str]] = {
    "halves-cut-as-one": (Fused, Shard(0), {}, "cut otherwise", "fused as StridedShard(dim=0, stride=2), cut by"),
    "one-cut-as-halves": (Pairs, HALVES, {}, "cut otherwise", "reads fused as Shard(dim=0, unit=1), cut by"),
    "halves-exchanged": (
        Fused, HALVES, {"activate": lambda m, gate, up: torch.relu(up) * gate}, "fused parts exchanged",
        "the second half of fused as its first",
    ),
    "pairs-exchanged": (
        Pairs, Shard(0, 2), {"activate": lambda m, gate, up: torch.relu(up) * gate}, "fused parts exchanged",
        "every pair of fused the other way round",
    ),
    "halves-read-as-pairs": (
        Fused, HALVES, {"activate": lambda m, *y: pairs_of(m, torch.cat(y, -1))}, "fused parts exchanged",
        "the module reads fused as pairs, which holds halves",
    ),
    "pairs-read-as-halves": (
        Pairs, Shard(0, 2), {"activate": lambda m, *y: halves_of(m, torch.stack(y, -1).flatten(-2))},
        "fused parts exchanged", "the module reads fused as halves, which holds pairs",
    ),
    "residual-on-every-rank": (
        Fused, HALVES, {"finish": lambda m, x, part: m.group.all_reduce(x + part)}, "residual x tp",
        "4 times instead of once",
    ),
    "residual-left-out": (
        Fused, HALVES, {"finish": lambda m, x, part: m.group.all_reduce(part)}, "residual dropped", "not added",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FUSED)
def test_fused_parameters_and_residuals(tmp_path: Path, monkeypatch: Patch, name: str) -> None:
    module, cut, wrong, cause, text = FUSED[name]
    case = Case(
        name="own",
        reference=module,
        sharded=module,
        inputs=lambda generator: (torch.randn(2, 24, 12, generator=generator),),
        plan={"fused.weight": cut, "fused.bias": cut, "down.weight": Shard(1)},
    )
    result = explained(
        tmp_path, monkeypatch, case, 4, lambda patch: [patch.setattr(Fused, k, f) for k, f in wrong.items()]
    )
    [named] = result.diagnosis
    assert (named.name, text in named.sentence) == (cause, True), named.sentence


class Sequence(nn.Module):
    """x + relu(x A) B, where ranks have some of the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.group = current_group()
        self.up, self.down = (
            nn.Linear(*n, bias=False) for n in ((12, 64 // self.group.size), (64 // self.group.size, 12))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        whole = self.group.all_gather(x, 1)
        return self.own(x, whole) + self.scattered(self.down(torch.relu(self.up(whole))))

    def scattered(self, part: torch.Tensor) -> torch.Tensor:
        return self.group.reduce_scatter(part, 1)

    def own(self, x: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.parametrize(
    ("method", "wrong", "causes"),
    [
        ("own", lambda m, x, whole: whole[:, : x.shape[1]], {"residual of other rank"}),
        ("own", lambda m, x, whole: whole[:, 1 : x.shape[1] + 1], set()),
        ("scattered", lambda m, part: m.group.all_reduce(part).chunk(m.group.size, 1)[0], {"slice of other rank"}),
        ("scattered", lambda m, part: m.group.all_reduce(part)[:, 1 : 1 + part.shape[1] // m.group.size], set()),
    ],
    ids=["residual-of-rank-0", "another-residual", "sum-of-rank-0", "another-part-of-the-sum"],
)
def test_a_slice_of_another_rank(tmp_path: Path, monkeypatch: Patch, method: str, wrong: Any, causes: set[str]) -> None:
    case = Case(
        name="own",
        reference=Sequence,
        sharded=Sequence,
        inputs=lambda generator: (torch.randn(2, 24, 12, generator=generator),),
        input_placements=(Shard(1),),
        output=Shard(1),
        plan={"up.weight": Shard(0), "down.weight": Shard(1)},
    )
    result = explained(tmp_path, monkeypatch, case, 4, lambda patch: patch.setattr(Sequence, method, wrong))
    assert {cause.name for cause in result.diagnosis} == causes


class Quantised(nn.Module):
    """Codes of rows, times the scale of each row's group: a rank's rows are of any group."""

    def __init__(self) -> None:
        super().__init__()
        self.group = current_group()
        rows = slice(self.group.rank * 32 // self.group.size, (self.group.rank + 1) * 32 // self.group.size)
        source = torch.Generator().manual_seed(1)
        self.register_buffer("codes", torch.randint(-8, 8, (32, 12), generator=source, dtype=torch.int8)[rows])
        self.register_buffer("of", (torch.randperm(32, generator=source) // 4)[rows])
        self.scale = nn.Parameter(torch.empty(8 // (self.group.size if self.cut else 1), 12))

    cut = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.group.all_reduce(x @ (self.codes.to(x.dtype) * self.scale[self.index()]))

    def index(self) -> torch.Tensor:
        return self.of


class CutScales(Quantised):
    cut = True

    def index(self) -> torch.Tensor:
        return self.of % len(self.scale)


@pytest.mark.parametrize(
    ("index", "named"),
    [
        (CutScales.index, ["shard instead of whole"]),
        (lambda m: m.of.clamp(max=len(m.scale) - 1), ["shard instead of whole"]),
        (lambda m: (m.of + 1) % len(m.scale), []),
    ],
    ids=["modulo", "clamped", "another-group"],
)
def test_what_every_rank_needs_whole_is_cut(tmp_path: Path, monkeypatch: Patch, index: Any, named: list[str]) -> None:
    case = Case(
        name="own",
        reference=Quantised,
        sharded=CutScales,
        inputs=lambda generator: (torch.randn(2, 24, 32, generator=generator),),
        input_placements=(Shard(2),),
        plan={"codes": Shard(0), "of": Shard(0), "scale": Shard(0)},
    )
    result = explained(tmp_path, monkeypatch, case, 4, lambda patch: patch.setattr(CutScales, "index", index))
    assert [cause.name for cause in result.diagnosis] == named
