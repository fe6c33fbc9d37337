"""One step of a program that the fuzz of exact arithmetic draws: true forms of a function, and mistakes in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from tp_harness.parallel.group import Group


@dataclass(frozen=True)
class Env:
    """What a step may use beside its two operands, each (4, 6): parameters w (6, 6), b (6,), and the group of ranks."""

    w: torch.Tensor
    b: torch.Tensor
    group: Group

    def part(self, x: torch.Tensor, dim: int) -> torch.Tensor:
        """This rank's share of a tensor of any shape."""
        size = x.shape[dim] // self.group.size
        return x.narrow(dim, self.group.rank * size, size)

    def mixed(self, x: torch.Tensor) -> torch.Tensor:
        """Linear in x, (4, 6): after a product, exp(a + b) = exp(a) exp(b) is known; after an exp it would not be."""
        return x @ self.w / 16


Function = Callable[[Env, torch.Tensor, torch.Tensor], torch.Tensor]  # (4, 6) tensors -> (4, 6)


@dataclass(frozen=True)
class Step:
    """A function in true forms, of which the first is how the reference writes it, and mistaken forms.

    `unproved` are true forms too, of which exact arithmetic does not know that they are.
    """

    name: str
    forms: tuple[Function, ...]
    mistakes: tuple[Function, ...]
    unproved: tuple[Function, ...] = ()
