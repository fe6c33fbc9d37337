"""Floating-point arithmetic of a run, with the interface of `Exact`; and what the name of a run's dtype stands for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch

from ..config.dtypes import EXACT
from .seen import Seen

NOMINAL = torch.float32  # what modules see in exact arithmetic: some make tables in it on one side alone


def nominal(name: str) -> torch.dtype:
    """The dtype that modules compute in, in a run of this name ("float32", "exact")."""
    return NOMINAL if name == EXACT else getattr(torch, name)


def nominal_name(name: str) -> str:
    """The name of that dtype."""
    return str(nominal(name)).removeprefix("torch.")


def stored(name: str) -> torch.dtype:
    """The dtype in which a run's tensors are written down: of exact ones, the float64 shadows."""
    return torch.float64 if name == EXACT else getattr(torch, name)


class Floats:
    """Arithmetic in one dtype: torch's own."""

    seen: Seen | None = None

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def computing(self) -> AbstractContextManager[None]:
        """What is entered while a module runs: nothing."""
        return nullcontext()

    def draw(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """A parameter or input of any shape, as it is."""
        del name
        return x

    def plain(self, x: torch.Tensor) -> torch.Tensor:
        """The values of a tensor of any shape."""
        return x

    def split(self, x: torch.Tensor, *, exponents: bool = False) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """A result of any shape, and its residues: none."""
        del exponents
        return x, ()

    def joined(
        self, shadow: torch.Tensor, residues: Sequence[torch.Tensor], dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        """A new tensor of what `split` took apart, any shape, in `dtype` (None: that of `shadow`)."""
        del residues
        return shadow.to(dtype or shadow.dtype, copy=True)

    def same(self, actual: torch.Tensor, expected: torch.Tensor) -> bool | None:
        """Whether two tensors, any shape, have the same residues: they have none."""
        del actual, expected
        return None

    def again(self, given: Mapping[str, torch.Tensor]) -> Floats:
        """A further run with other values of some parameters, any shape, of which nothing need be remembered."""
        del given
        return self

    def follows(self, x: torch.Tensor) -> bool:
        """Whether it is known on what a tensor of any shape depends: not here, and nobody asks."""
        del x
        return True
