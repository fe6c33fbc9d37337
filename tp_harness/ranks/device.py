"""Where a rank's module runs: what has to happen around `module(*inputs)` there.

On the CPU nothing does. A device that compiles moves parameters and inputs to itself, traces the call instead of
running it, and can look at the program before it runs; what it finds there is a `GraphFinding`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

from ..results.result import Program
from .rank_files import Tensors

Result = TypeVar("Result")
Movable = TypeVar("Movable", torch.Tensor, nn.Module)


class GraphFinding(Exception):  # noqa: N818  (a verdict on the module, no failure of the rank)
    """Why the program of a module must not or cannot run: one sentence, and the program if ranks share it."""

    def __init__(self, sentence: str, program: Program | None = None) -> None:
        super().__init__(sentence)
        self.program = program


class Device:
    """The CPU, and the base of all others.

    `eager` is False where calling a module only builds a program: that call's time says nothing, and the CPU time of
    the rank's thread never does.
    """

    eager = True

    def put(self, value: Movable) -> Movable:
        """A tensor or module, here."""
        return value

    def run(self, forward: Callable[[], Tensors]) -> tuple[Tensors, Program | None]:
        """What `forward` computes on tensors that are here, as CPU tensors; and the program that ran, if any did.

        Raises:
            GraphFinding: the program is not one that all ranks can share.
        """
        return forward(), None

    def finish(self, result: Result) -> Result:
        """The same, a forward's outputs and more, once what was run on them here has ended; for measuring."""
        return result

    def warm_up(self, forward: Callable[[], Any]) -> None:
        """Do what only the first such forward costs here, such as compiling it."""
