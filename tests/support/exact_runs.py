"""Runs of small functions in exact arithmetic, and what one proves about two of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from tp_harness.arithmetic.exact import Exact
from tp_harness.arithmetic.residues.field import Field
from tp_harness.arithmetic.seen import TIE, Seen

FIELD = Field.drawn(13)


@dataclass(frozen=True)
class Run:
    """What a function gave: its numbers, (rows, *shape), None if it has none; and what was seen."""

    numbers: torch.Tensor | None
    seen: Seen
    plain: torch.Tensor

    @property
    def margin(self) -> float:
        """The smallest of a decision."""
        return min((branch.margin for branch in self.seen.branches.values()), default=float("inf"))


def inputs(*shapes: Sequence[int], seed: int = 0) -> list[torch.Tensor]:
    """Float32 tensors of these shapes."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(tuple(shape), generator=generator) for shape in shapes]


def run(function: Callable[..., torch.Tensor], *given: torch.Tensor, field: Field = FIELD, grad: bool = False) -> Run:
    """Run a function on tensors of any shape, each a variable of the name of its place."""
    exact = Exact(field)
    variables = [exact.draw(f"x{i}", x) for i, x in enumerate(given)]
    with torch.set_grad_enabled(grad), exact.computing():
        out = function(*variables)
    out = out.detach()
    return Run(exact.taken(out), exact.seen, out)


def proved(right: Run, other: Run, field: Field = FIELD) -> bool:
    """Whether two runs prove the same function, as the judge decides it, without a look at the shadows."""
    if right.numbers is None or other.numbers is None or right.numbers.shape != other.numbers.shape:
        return False
    if any(each.seen.escapes or each.margin < TIE for each in (right, other)):
        return False
    return bool(field.same(right.numbers, other.numbers).all())
