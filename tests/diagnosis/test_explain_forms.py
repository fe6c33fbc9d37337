"""A mismatch of an own module is explained whatever its tensors, taps and placements are like."""

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
from tp_harness.parallel.placements import KVHeads, Partial, Placement, Replicate, Shard

TP = 4


class Odd(nn.Module):
    """x W + b with W quantised in buffers, a parameter without dimensions, and one that two names share."""

    def __init__(self) -> None:
        super().__init__()
        self.group = current_group()
        source = torch.Generator().manual_seed(0)
        rows = 16 // self.group.size
        codes = torch.randint(-8, 8, (16, 12), generator=source, dtype=torch.int8)
        self.register_buffer("codes", codes[:rows])
        self.register_buffer("order", (torch.arange(16) * 5 % 16 // 4)[:rows])
        self.scale, self.bias = nn.Parameter(torch.empty(4, 12)), nn.Parameter(torch.empty(12))
        self.one, self.none = nn.Parameter(torch.empty(())), nn.Parameter(torch.empty(0))
        self.tied = nn.Linear(12, 12, bias=False)
        self.tied_too = nn.Linear(12, 12, bias=False)
        self.tied_too.weight = self.tied.weight
        self.whole, self.part, self.twice, self.never, self.empty = (nn.Identity() for _ in range(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.codes.to(x.dtype) * self.scale[self.order]
        part = self.part(x.chunk(self.group.size, -1)[self.group.rank] @ weight)
        y = self.group.all_reduce(part) + self.bias
        self.empty(y[:0])
        y = self.wrong(self.twice(y) + self.twice(-y / 2))
        self.whole(self.number(y))
        return self.form(self.tied_too(torch.tanh(self.tied(y))) * self.one)

    def wrong(self, y: torch.Tensor) -> torch.Tensor:
        return y

    def number(self, y: torch.Tensor) -> torch.Tensor:
        return y

    def form(self, y: torch.Tensor) -> torch.Tensor:
        return y


@dataclass(frozen=True)
class Picky(Placement):
    """Cuts what has two dimensions, and knows no others."""

    def shard(self, full: torch.Tensor, rank: int, size: int) -> torch.Tensor:
        rows, _ = full.shape
        return full[rank * rows // size : (rank + 1) * rows // size]

    def join(self, shards: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.cat(list(shards))


PLAN: dict[str, Placement] = {"codes": Picky(), "order": Shard(0)}
WRONG: dict[str, Any] = {
    "scaled": lambda m, y: y * 3,
    "one-rank": lambda m, y: y + (m.group.rank == 2),
    "nothing-known": lambda m, y: y + y.square() * (m.group.size > 1),
}
FORMS: dict[str, dict[str, Any]] = {
    "as-it-is": {},
    "no-dimension": {"form": lambda m, y: y.square().sum() + torch.zeros(())},
    "one-dimension": {"form": lambda m, y: y.flatten()},
    "one-dimension-cut": {
        "form": lambda m, y: y.flatten().chunk(m.group.size)[m.group.rank], "output": Shard(0),
    },
    "five-dimensions": {"form": lambda m, y: y.view(1, 2, 24, 4, 3)},
    "five-dimensions-cut": {
        "form": lambda m, y: y.view(1, 2, 24, 4, 3).chunk(m.group.size, 3)[m.group.rank].contiguous(),
        "output": KVHeads(3, 4),
    },
    "picky-output": {"form": lambda m, y: y.flatten(0, 1).chunk(m.group.size)[m.group.rank], "output": Picky()},
    "whole-numbers": {"number": lambda m, y: (y * 8).long(), "taps": {"whole": Replicate()}},
    "booleans": {"number": lambda m, y: y > 0, "taps": {"whole": Replicate()}},
    "all-zero": {"number": lambda m, y: y.long() * 0, "taps": {"whole": Replicate(), "part": Partial()}},
    "tap-without-dimension": {"number": lambda m, y: y.sum(), "taps": {"whole": Replicate()}},
    "tap-of-one-dimension": {"number": lambda m, y: y.flatten(), "taps": {"whole": Replicate()}},
    "taps-called-otherwise": {
        "taps": {"never": Replicate(), "empty": Replicate(), "twice": Replicate(), "part": Partial()},
    },
    "names-of-known-taps": {"taps": {"tied": Replicate(), "tied_too": Replicate()}},
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("form", FORMS)
def test_no_form_is_too_odd(tmp_path: Path, monkeypatch: Patch, form: str, wrong: str) -> None:
    fields = dict(FORMS[form])
    for method in ("form", "number"):
        monkeypatch.setattr(Odd, method, fields.pop(method, getattr(Odd, method)))
    case = Case(
        name="own",
        reference=Odd,
        sharded=Odd,
        inputs=lambda source: (torch.randn(2, 24, 16, generator=source),),
        **({"plan": PLAN} | fields),
    )
    result = explained(tmp_path, monkeypatch, case, TP, lambda p: p.setattr(Odd, "wrong", WRONG[wrong]))
    assert result.first_divergence is not None, result.notes
    assert result.hypotheses > 1


def test_one_number_is_not_called_scaled(tmp_path: Path, monkeypatch: Patch) -> None:
    """A factor can be found for any."""
    monkeypatch.setattr(Odd, "form", FORMS["no-dimension"]["form"])
    case = Case(
        name="own", reference=Odd, sharded=Odd, plan=PLAN,
        inputs=lambda source: (torch.randn(2, 24, 16, generator=source),),
    )  # fmt: skip
    result = explained(tmp_path, monkeypatch, case, TP, lambda p: p.setattr(Odd, "wrong", WRONG["nothing-known"]))
    assert (result.first_divergence is None, result.diagnosis) == (False, ())


def test_a_tap_s_placement_that_raises_is_said(tmp_path: Path, monkeypatch: Patch) -> None:
    case = Case(
        name="own", reference=Odd, sharded=Odd, plan=PLAN, taps={"whole": Picky()},
        inputs=lambda source: (torch.randn(2, 24, 16, generator=source),),
    )  # fmt: skip
    result = explained(tmp_path, monkeypatch, case, TP, lambda p: p.setattr(Odd, "wrong", WRONG["scaled"]))
    assert result.first_divergence is None
    [note] = result.notes
    assert note == (
        "what went wrong first was not found out: Picky() of whole raised ValueError: too many values to unpack "
        "(expected 2)"
    )


class Slope(nn.Module):
    """The output is a gradient, which inference mode does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.group = current_group()
        self.up, self.energy = nn.Linear(8, 16 // self.group.size), nn.Linear(16 // self.group.size, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            at = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.energy(torch.tanh(self.up(at))).sum(), at)
        return self.finish(slope)

    def finish(self, slope: torch.Tensor) -> torch.Tensor:
        return self.group.all_reduce(slope)


def test_a_module_that_takes_gradients_is_explained(tmp_path: Path, monkeypatch: Patch) -> None:
    case = Case(
        name="own", reference=Slope, sharded=Slope,
        plan={"up.weight": Shard(0), "up.bias": Shard(0), "energy.weight": Shard(1)},
        inputs=lambda source: (torch.randn(2, 6, 8, generator=source),),
    )  # fmt: skip
    result = explained(tmp_path, monkeypatch, case, TP, lambda p: p.setattr(Slope, "finish", lambda _, slope: slope))
    assert [cause.name for cause in result.diagnosis] == ["all-reduce missing"]
