"""What is changed alike on both sides before they are compared: casts, eval, no gradients, loaded buffers.

docs/case.md lists these places; for each, a mistake that could hide there is put in.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from ladder import own_verdicts
from torch import nn

from tp_harness.arithmetic.casts import cast
from tp_harness.case.case import Case
from tp_harness.parallel.group import Group, current_group
from tp_harness.parallel.placements import Placement, Shard
from tp_harness.results.result import Result, Status

Patch = pytest.MonkeyPatch


class Rotating(nn.Module):
    """Columns of `up` over ranks; pairs of outputs are turned by a complex buffer."""

    persistent = False

    def __init__(self) -> None:
        super().__init__()
        self.group = current_group()
        self.up = nn.Linear(8, 16 // self.group.size, bias=False)
        self.dropout = nn.Dropout(0.5)
        self.register_buffer("turn", torch.polar(torch.ones(6, 8), torch.arange(48.0).view(6, 8)), persistent=False)
        self.register_buffer("slopes", torch.arange(1.0, 9.0), persistent=self.persistent)
        self.register_buffer("quantised", torch.tensor([0.5, 1.75]).to(torch.float8_e4m3fn), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.dropout(self.group.all_gather(self.up(x), -1))
        pairs = torch.view_as_complex(y.float().unflatten(-1, (-1, 2)).contiguous()) * self.turn
        out = torch.view_as_real(pairs).flatten(-2).to(x.dtype)
        return out * self.slopes.repeat_interleave(2).to(x.dtype) + self.quantised.to(x.dtype).sum()


def verdicts(
    folder: Path,
    patch: Patch,
    edit: Any = None,
    module: type[nn.Module] = Rotating,
    plan: Mapping[str, Placement] = MappingProxyType({"up.weight": Shard(0)}),
) -> dict[str, Result]:
    """By dtype, of ranks whose module is changed by `edit(module, group)` after it was loaded."""
    case = Case(
        name="own",
        reference=module,
        sharded=module,
        plan=plan,
        inputs=lambda generator: (torch.randn(2, 6, 8, generator=generator),),
        **({"edit": edit} if edit else {}),
    )
    return own_verdicts(folder, patch, case)


def conjugated(module: Any, _group: Group) -> None:
    module.turn = module.turn.conj().resolve_conj()


def other_slope(module: Any, _group: Group) -> None:
    module.slopes[3] *= 1.25


def drops(module: Any, group: Group) -> None:
    """Dropout stays on: it draws other numbers than the reference's, which are none."""
    module.dropout.train()


def with_gradients(module: Any, _group: Group) -> None:
    """What is done only while gradients are recorded is not done in a run, on either side."""
    module.up.register_forward_hook(lambda _m, _i, out: out * 2 if torch.is_grad_enabled() else out)


@pytest.mark.parametrize(
    ("edit", "status"),
    [
        (None, Status.PASS),
        (conjugated, Status.MISMATCH),
        (other_slope, Status.MISMATCH),
        (drops, Status.MISMATCH),
        (with_gradients, Status.PASS),
    ],
    ids=["right", "conjugated", "buffer", "training", "gradients"],
)
def test_a_mistake_in_what_both_sides_share(tmp_path: Path, monkeypatch: Patch, edit: Any, status: Status) -> None:
    found = verdicts(tmp_path, monkeypatch, edit)
    assert {dtype: r.status for dtype, r in found.items()} == dict.fromkeys(found, status)


def test_a_buffer_that_is_loaded_over_is_told(tmp_path: Path, monkeypatch: Patch) -> None:
    """A persistent buffer gets the reference's values; that a rank would have built other ones is noted."""

    class Persistent(Rotating):
        persistent = True

    class Other(Persistent):
        def __init__(self) -> None:
            super().__init__()
            if self.group.size > 1:
                self.slopes *= self.group.rank + 1

    found = verdicts(tmp_path, monkeypatch, module=Other)
    assert found["float32"].status is Status.PASS
    assert found["float32"].notes == (
        "rank 1 builds other values of the buffer slopes than those that are loaded over it: whether it builds them "
        "rightly is not seen",
    )
    assert verdicts(tmp_path / "right", monkeypatch, module=Persistent)["float32"].notes == ()


def test_a_cast_changes_digits_and_never_the_kind_of_a_number() -> None:
    module = Rotating()
    module.register_buffer("count", torch.tensor(3))
    kinds = {}
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        cast(module, dtype)
        kinds[dtype] = (module.up.weight.dtype, module.turn.dtype, module.quantised.dtype, module.count.dtype)
    same = (torch.float8_e4m3fn, torch.int64)
    assert kinds == {
        torch.float64: (torch.float64, torch.complex128, *same),
        torch.float32: (torch.float32, torch.complex64, *same),
        torch.bfloat16: (torch.bfloat16, torch.complex64, *same),
    }


def test_factories_with_an_argument_dtype_are_given_it(tmp_path: Path, monkeypatch: Patch) -> None:
    """As modules of training libraries have it: parameters are made in it, and the input is cast to it."""
    asked: list[tuple[int, torch.dtype]] = []

    class Typed(nn.Module):
        def __init__(self, dtype: torch.dtype) -> None:
            super().__init__()
            self.group, self.dtype = current_group(), dtype
            asked.append((self.group.size, dtype))
            self.up = nn.Linear(8, 16 // self.group.size, bias=False, dtype=dtype)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.dtype != self.dtype:
                raise TypeError(f"{x.dtype} is not {self.dtype}")
            return self.group.all_gather(self.up(x), -1)

    case = Case(
        name="own",
        reference=Typed,
        sharded=Typed,
        plan={"up.weight": Shard(0)},
        inputs=lambda generator: (torch.randn(2, 6, 8, generator=generator),),
    )
    assert {r.status for r in own_verdicts(tmp_path, monkeypatch, case).values()} == {Status.PASS}
    assert {dtype for size, dtype in asked if size == 1} == {torch.float64, torch.float32, torch.bfloat16}
    assert {dtype for size, dtype in asked if size == 2} == {torch.float32, torch.bfloat16}


class Forces(nn.Module):
    """The output is a gradient: the negative slope of an energy, of which each rank has some summands."""

    def __init__(self) -> None:
        super().__init__()
        self.group = current_group()
        self.up, self.energy = nn.Linear(8, 16 // self.group.size), nn.Linear(16 // self.group.size, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            at = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.energy(torch.tanh(self.up(at))).sum(), at)
        return self.group.all_reduce(-slope)


def half_of_them(module: Any, group: Group) -> None:
    if group.rank:
        module.energy.weight *= 1.5


@pytest.mark.parametrize(("edit", "status"), [(None, Status.PASS), (half_of_them, Status.MISMATCH)])
def test_a_module_may_take_gradients_itself(tmp_path: Path, monkeypatch: Patch, edit: Any, status: Status) -> None:
    plan = {"up.weight": Shard(0), "up.bias": Shard(0), "energy.weight": Shard(1)}
    found = verdicts(tmp_path, monkeypatch, edit, Forces, plan)
    assert {r.status for r in found.values()} == {status}


class Upcast(Rotating):
    """float32 is returned in every dtype, as language models do with their logits."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        return y if x.dtype == torch.float64 else y.float()


@pytest.mark.parametrize(("edit", "status"), [(None, Status.PASS), (other_slope, Status.MISMATCH)])
def test_outputs_may_have_the_dtype_that_the_reference_gives_them(
    tmp_path: Path, monkeypatch: Patch, edit: Any, status: Status
) -> None:
    found = verdicts(tmp_path, monkeypatch, edit, Upcast)
    assert {dtype: r.status for dtype, r in found.items()} == dict.fromkeys(found, status)


class Chance(nn.Module):
    """Something else at each call."""

    draw: Any = None

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(8, 16 // current_group().size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return current_group().all_gather(self.up(x), -1) + type(self).draw()


@pytest.mark.parametrize("draw", [torch.rand, np.random.rand, random.random], ids=["torch", "numpy", "python"])
def test_a_reference_of_chance_is_void_whoever_draws(
    tmp_path: Path, monkeypatch: Patch, draw: Callable[..., object]
) -> None:
    drawn = staticmethod(lambda: draw(1) if draw is torch.rand else draw())
    module = type("OfChance", (Chance,), {"draw": drawn})
    found = verdicts(tmp_path, monkeypatch, None, module, {"up.weight": Shard(0), "up.bias": Shard(0)})
    assert {r.status for r in found.values()} == {Status.VOID}
