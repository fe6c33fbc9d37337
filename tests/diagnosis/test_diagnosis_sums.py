"""What an own module adds up wrongly: branches that every rank has whole, sums over ranks left out or made twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from explained import Patch, explained
from torch import nn
from torch.nn import functional as F  # noqa: N812

from tp_harness.case.case import Case
from tp_harness.faults.ways import sum_of_pair
from tp_harness.parallel.group import current_group
from tp_harness.parallel.placements import Partial, Placement, Replicate, Shard
from tp_harness.results.result import Result

HIDDEN, WIDE, SIDE, TP = 12, 32, 16, 4


class Branches(nn.Module):
    """x + MLP(x) + side(x) + scores E: a cut MLP, a branch that may be cut, and a vector for each of three experts."""

    side_is_cut = False

    def __init__(self) -> None:
        super().__init__()
        self.group = current_group()
        side = SIDE // self.group.size if self.side_is_cut else SIDE
        self.up, self.down = nn.Linear(HIDDEN, WIDE // self.group.size), nn.Linear(WIDE // self.group.size, HIDDEN)
        self.side_in, self.side_out = nn.Linear(HIDDEN, side, bias=False), nn.Linear(side, HIDDEN, bias=False)
        self.router, self.expert_bias = nn.Linear(HIDDEN, 3), nn.Parameter(torch.empty(3, HIDDEN))
        self.main, self.branch = nn.Identity(), nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        main = self.main(F.linear(torch.relu(self.up(x)), self.down.weight))
        side = self.branch(self.side_out(torch.tanh(self.side_in(x))))
        return self.finish(x, main, side, torch.softmax(self.router(x), -1) @ self.expert_bias)

    def finish(self, x: Any, main: Any, side: Any, bias: Any) -> torch.Tensor:
        total: torch.Tensor = self.group.all_reduce(main)
        side = self.group.all_reduce(side) if self.side_is_cut else side
        return x + total + self.down.bias + side + bias


class CutSide(Branches):
    side_is_cut = True


MLP: dict[str, Placement] = {"up.weight": Shard(0), "up.bias": Shard(0), "down.weight": Shard(1)}
SIDES: dict[str, Placement] = {"side_in.weight": Shard(0), "side_out.weight": Shard(1)}


def total(m: Any, *summands: torch.Tensor) -> torch.Tensor:
    return m.group.all_reduce(sum(summands))  # type: ignore[no-any-return]


MISTAKES: dict[str, tuple[type[Branches], Any, str, str]] = {
    "side-on-every-rank": (
        Branches, lambda m, x, main, side, bias: x + total(m, main, side) + m.down.bias + bias,
        "summand x tp", "what side_out contributes, which every rank has whole, is added 4 times",
    ),
    "side-left-out": (
        Branches, lambda m, x, main, side, bias: x + total(m, main) + m.down.bias + bias,
        "summand dropped", "what side_out contributes is not added",
    ),
    "side-divided": (
        Branches, lambda m, x, main, side, bias: x + total(m, main) + m.down.bias + bias + side / m.group.size,
        "summand / tp", "what side_out contributes, which every rank has whole, is divided by 4",
    ),
    "side-scaled": (
        Branches, lambda m, x, main, side, bias: x + total(m, main) + m.down.bias + bias + 2.5 * side,
        "summand scaled", "what side_out contributes is 2.5 times what it should be",
    ),
    "side-never-summed": (
        CutSide, lambda m, x, main, side, bias: x + total(m, main) + m.down.bias + bias + side,
        "all-reduce missing", "what its own part of side_out.weight gives",
    ),
    "side-summed-twice": (
        CutSide, lambda m, x, main, side, bias: x + total(m, main, total(m, side)) + m.down.bias + bias,
        "times tp", "what side_out contributes is 4 times what it should be: reduced twice",
    ),
    "side-averaged": (
        CutSide, lambda m, x, main, side, bias: x + total(m, main, side / m.group.size) + m.down.bias + bias,
        "divided by tp", "what side_out contributes is divided by 4",
    ),
    "expert-bias-on-every-rank": (
        Branches, lambda m, x, main, side, bias: x + total(m, main, bias) + m.down.bias + side,
        "bias x tp", "expert_bias is added by every rank",
    ),
    "not-summed-before-the-residual": (
        Branches, lambda m, x, main, side, bias: x + main + m.down.bias + side + bias,
        "all-reduce missing", "what its own part of down.weight gives",
    ),
    "summed-in-pairs": (
        Branches, lambda m, x, main, side, bias: x + sum_of_pair(m.group, main) + m.down.bias + side + bias,
        "reduced in subgroups", "what parts of down.weight in groups such as ranks [0, 1] give",
    ),
    "a-rank-left-out": (
        Branches, lambda m, x, main, side, bias: x + total(m, main * (m.group.rank != 2)) + m.down.bias + side + bias,
        "rank miscounted", "rank 2's part of what down.weight contributes is not in the sum",
    ),
}  # fmt: skip


def found(folder: Path, patch: Patch, module: type[Branches], finish: Any, **fields: Any) -> Result:
    case = Case(
        name="own",
        reference=module,
        sharded=module,
        inputs=lambda generator: (torch.randn(2, 24, HIDDEN, generator=generator),),
        plan=MLP | (SIDES if module.side_is_cut else {}),
        **fields,
    )
    return explained(folder, patch, case, TP, lambda p: p.setattr(Branches, "finish", finish))


@pytest.mark.parametrize("name", MISTAKES)
def test_a_wrong_sum_is_named_with_what_is_added(tmp_path: Path, monkeypatch: Patch, name: str) -> None:
    module, finish, cause, text = MISTAKES[name]
    [named] = found(tmp_path, monkeypatch, module, finish).diagnosis
    assert (named.name, text in named.sentence) == (cause, True), named


NEAR = {  # one of two numbers that a signature has one for, or a summand that is like the one it means
    "side-on-two-ranks-more": lambda m, x, main, side, bias: (
        x + total(m, main) + m.down.bias + bias + side * side.sign()
    ),
    "two-factors": lambda m, x, main, side, bias: (
        x + total(m, main) + m.down.bias + bias + side * torch.tensor([2.0, 2.1])[:, None, None]
    ),
    "own-part-of-another-rank": lambda m, x, main, side, bias: x + main.roll(1, 1) + m.down.bias + side + bias,
    "a-rank-half-left-out": lambda m, x, main, side, bias: (
        x + total(m, main * (1 - 0.5 * (m.group.rank == 2))) + m.down.bias + side + bias
    ),
}


@pytest.mark.parametrize("name", NEAR)
def test_a_sum_that_is_wrong_otherwise_is_not_called_one_of_them(tmp_path: Path, monkeypatch: Patch, name: str) -> None:
    result = found(tmp_path, monkeypatch, Branches, NEAR[name])
    assert result.first_divergence is not None
    assert result.diagnosis == ()


TAPS: dict[str, Placement] = {"main": Partial(), "branch": Replicate()}


@pytest.mark.parametrize("name", ["side-on-every-rank", "expert-bias-on-every-rank", "summed-in-pairs"])
def test_a_tap_more_loses_no_cause(tmp_path: Path, monkeypatch: Patch, name: str) -> None:
    module, finish, cause, _ = MISTAKES[name]
    result = found(tmp_path, monkeypatch, module, finish, taps=TAPS)
    assert [named.name for named in result.diagnosis] == [cause]


class Layers(nn.Module):
    """Two residual blocks with a norm in each."""

    def __init__(self) -> None:
        super().__init__()
        self.group = current_group()
        for i in (0, 1):
            self.register_module(f"norm{i}", nn.LayerNorm(HIDDEN))
            self.register_module(f"up{i}", nn.Linear(HIDDEN, WIDE // self.group.size))
            self.register_module(f"down{i}", nn.Linear(WIDE // self.group.size, HIDDEN))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i in (0, 1):
            norm, up, down = (self.get_submodule(f"{name}{i}") for name in ("norm", "up", "down"))
            x = x + self.add(i, F.linear(F.gelu(up(norm(x))), down.weight), down.bias)  # type: ignore[arg-type]
        return x

    def add(self, i: int, part: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return self.group.all_reduce(part) + bias


IN_FIRST: dict[str, tuple[Any, str, str]] = {
    "bias": (
        lambda m, i, part, bias: m.group.all_reduce(part + bias) if i == 0 else m.group.all_reduce(part) + bias,
        "bias x tp", "down0.bias is added by every rank",
    ),
    "not-summed": (
        lambda m, i, part, bias: (part if i == 0 else m.group.all_reduce(part)) + bias,
        "all-reduce missing", "what its own part of down0.weight gives",
    ),
    "mean": (
        lambda m, i, part, bias: m.group.all_reduce(part) / (m.group.size if i == 0 else 1) + bias,
        "divided by tp", "what down0.weight contributes is divided by 4",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", IN_FIRST)
def test_a_mistake_in_the_first_of_two_layers_is_seen_through_the_second(
    tmp_path: Path, monkeypatch: Patch, name: str
) -> None:
    add, cause, text = IN_FIRST[name]
    plan: dict[str, Placement] = {f"up{i}.{p}": Shard(0) for i in (0, 1) for p in ("weight", "bias")}
    case = Case(
        name="own",
        reference=Layers,
        sharded=Layers,
        inputs=lambda generator: (torch.randn(2, 24, HIDDEN, generator=generator),),
        plan=plan | {"down0.weight": Shard(1), "down1.weight": Shard(1)},
    )
    [named] = explained(tmp_path, monkeypatch, case, TP, lambda p: p.setattr(Layers, "add", add)).diagnosis
    assert (named.name, text in named.sentence) == (cause, True), named
