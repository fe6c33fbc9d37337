"""Complex numbers in exact arithmetic: each rule is torch's function of pairs, and what has none is no proof."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from exact_runs import inputs, proved, run

Function = Callable[[torch.Tensor], torch.Tensor]
TURN = torch.complex(torch.tensor([0.5, -0.25, 2.0]), torch.tensor([1.5, 0.75, -0.125]))


def of(function: Function) -> Callable[[torch.Tensor], torch.Tensor]:
    """The function of complex tensors as one of (..., 2) real ones."""
    return lambda x: torch.view_as_real(function(torch.view_as_complex(x)).resolve_conj())


ALIKE: dict[str, tuple[Function, Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]]] = {
    "mul": (lambda z: z * TURN, lambda a, b: (a * TURN.real - b * TURN.imag, a * TURN.imag + b * TURN.real)),
    "square": (lambda z: z * z, lambda a, b: (a * a - b * b, 2 * a * b)),
    "div": (lambda z: 1 / z, lambda a, b: (a / (a * a + b * b), -b / (a * a + b * b))),
    "add": (lambda z: z + (2 - 3j), lambda a, b: (a + 2, b - 3)),
    "sub": (lambda z: 1.5 - z, lambda a, b: (1.5 - a, -b)),
    "neg": (lambda z: -z, lambda a, b: (-a, -b)),
    "conj": (lambda z: z.conj(), lambda a, b: (a, -b)),
    "conj_mul": (lambda z: z.conj() * z * z, lambda a, b: (a * (a * a + b * b), b * (a * a + b * b))),
    "clone": (lambda z: z.clone().to(torch.complex128), lambda a, b: (a, b)),
    "complex": (lambda z: torch.complex(z.imag, z.real), lambda a, b: (b, a)),
    "view": (lambda z: z.t()[1:].t() * 1j, lambda a, b: (-b[:, 1:], a[:, 1:])),
    "abs": (lambda z: z * z.abs(), lambda a, b: (a * (a * a + b * b).sqrt(), b * (a * a + b * b).sqrt())),
}


@pytest.mark.parametrize("name", ALIKE)
def test_a_rule_is_the_function_of_pairs(name: str) -> None:
    function, pairs = ALIKE[name]
    [x] = inputs((4, 3, 2))
    left = run(of(function), x)
    assert not left.seen.escapes and proved(left, run(lambda x: torch.stack(pairs(*x.unbind(-1)), -1), x))
    assert not proved(left, run(lambda x: torch.stack(pairs(*x.flip(-1).unbind(-1)), -1), x))


@pytest.mark.parametrize(
    "function",
    [
        of(torch.exp),
        of(lambda z: z @ z.t()),
        of(lambda z: z.mul_(2)),
        lambda x: (x * TURN[0]).real,
        lambda x: (x * 1j).imag,
    ],
    ids=["exp", "matmul", "mul_", "real_and_complex", "real_and_number"],
)
def test_what_has_no_rule_is_no_proof(function: Callable[[torch.Tensor], torch.Tensor]) -> None:
    try:
        found = run(function, *inputs((3, 3, 2)))
    except (RuntimeError, TypeError):  # the module's verdict is NOT PROVED then too
        return
    assert found.seen.escapes
