"""The device of a rank's module: what has to be done there around the call `module(*inputs)`.

On the CPU that is nothing. A device that compiles moves parameters and inputs to itself, traces the call instead of
running it, and can check the program before it runs; a program that fails the check is a `GraphFinding`.
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
    """The program of a module must not or cannot run: one sentence why, and the program if ranks share it."""

    def __init__(self, sentence: str, program: Program | None = None) -> None:
        super().__init__(sentence)
        self.program = program


class Device:
    """The CPU, and the base of all others.

    `eager` is False where calling a module only builds a program: then the time of that call, and the CPU time of the
    rank's thread, do not measure the forward.
    """

    eager = True

    def put(self, value: Movable) -> Movable:
        """Copy a tensor, or the parameters of a module, to this device; shapes and dtypes stay."""
        return value

    def run(self, forward: Callable[[], Tensors]) -> tuple[Tensors, Program | None]:
        """Run `forward` on tensors of this device.

        Returns:
            Its tensors copied to the CPU, same shapes and dtypes; and the compiled program, None where there is none.

        Raises:
            GraphFinding: the program is not one that all ranks can share.
        """
        return forward(), None

    def finish(self, result: Result) -> Result:
        """Wait until every tensor in `result` (of any shape) is computed, and return `result`; for measuring."""
        return result

    def warm_up(self, forward: Callable[[], Any]) -> None:
        """Do the work that only the first such forward needs, such as compiling it."""
