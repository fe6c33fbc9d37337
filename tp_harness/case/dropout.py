"""Dropout under locked masks: in training mode, reference and ranks drop the same elements.

A mask depends on the run's seed and on the number of the dropout in the run. A rank takes its part of it, as the shape
of what it drops says.

Not covered: the generators from which ranks would draw, and dropout inside scaled_dot_product_attention.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from ..libraries.torch_private import without_modes
from ..parallel.group import current_group
from .placing.guessed_placements import by_shapes
from .seeds import generator

Shape = tuple[int, ...]
_DROPOUTS = (torch.nn.functional.dropout, torch.dropout)


@contextmanager
def locked_dropout(module: Any, seed: int, shapes: Sequence[Shape]) -> Iterator[list[Shape]]:
    """Lock the dropouts of a module in training mode; yields the shapes of what they are given, as they are given."""
    if not getattr(module, "training", False):
        yield []
        return
    with LockedDropout(seed, shapes) as mode:
        yield mode.seen


class LockedDropout(TorchFunctionMode):
    """While it is entered, dropouts drop what the seed says.

    Args:
        seed: of the masks.
        shapes: the full shape of what each dropout of the run is given, in order; () where it is given all.
    """

    def __init__(self, seed: int, shapes: Sequence[Shape] = ()) -> None:
        super().__init__()
        self.seed, self.shapes = seed, tuple(shapes)
        self.seen: list[Shape] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call `func`, or drop by the mask."""
        if func not in _DROPOUTS:
            return func(*args, **(kwargs or {}))
        return self._drop(*args, **(kwargs or {}))

    def _drop(
        self, input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False, train: bool = True
    ) -> torch.Tensor:
        if not (training and train) or p == 0.0:
            return input
        kept = self._mask(tuple(input.shape), p).to(input.device)
        dropped = input * (kept / (1 - p) if p < 1 else kept).to(input.dtype)
        return input.copy_(dropped) if inplace else dropped

    def _mask(self, local: Shape, p: float) -> torch.Tensor:
        """What is kept, bool, of the shape `local`.

        Raises:
            RuntimeError: a rank drops something of another shape than a part of what the reference drops.
        """
        number = len(self.seen)
        self.seen.append(local)
        full = self.shapes[number] if number < len(self.shapes) else local
        with without_modes():  # no work of the module's
            kept = torch.rand(full, generator=generator(self.seed, f"dropout.{number}")) >= p
        if full == local:
            return kept
        group = current_group()
        placement = by_shapes(full, local, group.size)
        if placement is None:
            raise RuntimeError(
                f"dropout {number} is given {list(local)} on {group.size} ranks, the reference {list(full)}"
            )
        return placement.shard(kept, group.rank, group.size)
