"""What is said of parameters that the inputs do not reach: by what changes when values do, not by the gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tp_harness.case.calls import Calls
from tp_harness.case.case import Case
from tp_harness.parallel.placements import Shard
from tp_harness.prepare.unreached_parameters import MOST_RUNS, Probe, idle, notes

X = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
Forward = Callable[[nn.Module, torch.Tensor], torch.Tensor]


class Module(nn.Module):
    """Parameters of order one, and a function of them that a test gives."""

    def __init__(self, forward: Forward, **shapes: tuple[int, ...]) -> None:
        super().__init__()
        source = torch.Generator().manual_seed(1)
        self.router_logits, self.chosen = nn.Identity(), nn.Identity()
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape, generator=source)))
        self._forward = forward

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._forward(self, x)


def unreached(
    forward: Forward, x: torch.Tensor = X, routing: tuple[str, ...] = (), **shapes: tuple[int, ...]
) -> list[str]:
    module = Module(forward, **shapes)
    plan = {"cut": Shard(1)}
    case = Case(name="m", reference=nn.Module, sharded=nn.Module, inputs=lambda _: (x,), plan=plan, routing=routing)
    return notes(idle(case, module, Calls.of((x,))))


def by_choice(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Experts chosen by their logits and a correction, which has no gradient: it weighs nothing."""
    logits = m.router_logits(x @ m.gate)
    chosen = m.chosen((logits + m.correction).topk(2, -1).indices)
    return logits.gather(-1, chosen).softmax(-1)


def far_behind(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The last two experts are never chosen, and would be if their corrections were larger by far."""
    behind = torch.tensor([0.0, 0.0, 0.0, 0.0, -9.0, -9.0])
    x = x[:, :6]
    return x.gather(-1, (x.sigmoid() + m.correction + behind).topk(2, -1).indices)


def locked_by_choice(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Only the choice depends on the gate: an output that does not say which was taken."""
    m.chosen((m.router_logits(x @ m.gate)).topk(2, -1).indices)
    return x


WITHOUT_GRADIENT: dict[str, tuple[Forward, dict[str, tuple[int, ...]]]] = {
    "topk of few": (far_behind, {"correction": (6,)}),
    "topk": (by_choice, {"gate": (8, 6), "correction": (6,)}),
    "round": (lambda m, x: (x @ m.w * 8).round(), {"w": (8, 6)}),
    "sign": (lambda m, x: torch.sign(x @ m.w), {"w": (8, 6)}),
    "argmax": (lambda m, x: m.table.detach()[(x @ m.w).argmax(-1)], {"w": (8, 2), "table": (2, 3)}),
    "one-hot": (lambda m, x: nn.functional.one_hot((x @ m.w).argmax(-1), 6).to(x.dtype), {"w": (8, 6)}),
    "in place": (lambda m, x: x.mul_(m.w).relu_().mul_(m.w), {"w": (8,)}),
}


@pytest.mark.parametrize("name", WITHOUT_GRADIENT)
def test_what_acts_without_a_gradient_is_reached(name: str) -> None:
    forward, shapes = WITHOUT_GRADIENT[name]
    assert unreached(forward, **shapes) == []


def test_what_acts_on_a_router_alone_is_reached() -> None:
    note = "gate changes no output with these inputs: a mistake there is unseen"
    assert unreached(locked_by_choice, gate=(8, 6)) == [note]
    assert unreached(locked_by_choice, routing=("",), gate=(8, 6)) == []


def attention(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Each key is shifted alike: every query's scores move together, and softmax does not see it but for rounding."""
    return torch.softmax(x @ m.q @ (x @ m.k + m.bias).T, -1) @ x


def test_rounding_is_no_influence() -> None:
    module = Module(attention, q=(8, 8), k=(8, 8), bias=(8,)).double()
    x = X.double()
    (gradient,) = torch.autograd.grad(attention(module, x).sum(), [module.get_parameter("bias")])
    assert gradient.any(), "rounding leaves a gradient that is not zero"
    assert unreached(attention, q=(8, 8), k=(8, 8), bias=(8,)) == [
        "bias changes no output with these inputs: a mistake there is unseen"
    ]


def test_places_are_those_along_the_dimension_that_is_cut() -> None:
    rows = torch.tensor([0, 1, 1, 4, 5])
    assert unreached(lambda m, x: m.cut[:, x].T, rows, cut=(3, 8)) == [
        "4 of 8 rows of cut (2, 3, 6, 7) change no output with these inputs: a mistake there is unseen"
    ]


def test_inputs_of_zeros_reach_nothing_that_multiplies_them() -> None:
    said = unreached(lambda m, x: x @ m.w + m.bias, torch.zeros(16, 8), w=(8, 6), bias=(6,))
    assert said == ["w changes no output with these inputs: a mistake there is unseen"]


def test_infinite_scores_hide_nothing() -> None:
    """A padded expert's score is -inf before and after a change; so is their difference nan."""

    def padded(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        mask = torch.tensor([0.0, 0.0, 0.0, -torch.inf])
        return m.router_logits(x @ m.gate + mask).softmax(-1) + 0 * m.chosen(x[:, :2].long())[:, :1]

    assert unreached(padded, routing=("",), gate=(8, 4), unused=(2,)) == [
        "unused changes no output with these inputs: a mistake there is unseen"
    ]


def test_the_runs_are_counted_and_what_is_left_counts_as_reached() -> None:
    module = Module(lambda m, x: (x @ m.w).sign(), w=(8, 4096)).double()
    case = Case(name="m", reference=nn.Module, sharded=nn.Module, inputs=lambda _: (X,))
    probe = Probe(case, module, Calls.of((X,)))
    before = module.get_parameter("w").detach().clone()
    assert probe.still(module.get_parameter("w").detach().T, range(4096)) == []
    assert 0 <= probe.left < MOST_RUNS - 20
    assert torch.equal(module.get_parameter("w"), before), "the values are put back"


def test_a_module_that_draws_random_numbers_is_not_judged() -> None:
    assert unreached(lambda m, x: x @ m.w * torch.rand(6), w=(8, 6), unused=(4,)) == []


def test_a_mask_that_stays_as_it_is_hides_no_influence() -> None:
    """Beside -1e9 in some columns, what a parameter changes is far below a fraction of the whole."""

    def masked(m: Any, x: torch.Tensor) -> torch.Tensor:
        scores = m.small * 1e-3 * x[:, :1] + torch.zeros(len(x), 6, dtype=x.dtype)
        return scores.masked_fill(torch.arange(6) < 2, -1e9)

    assert unreached(masked, small=(1,)) == []
