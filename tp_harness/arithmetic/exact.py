"""Exact arithmetic as the rest of the project uses it: one run of a module, on variables, in `computing()`."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy

import torch

from . import collectives, composed, decisions, elementwise, moving, pairs, products  # noqa: F401  (they register rules)
from .escapes import watching
from .floats import NOMINAL
from .memory import Memory
from .mode import ExactMode
from .residues.field import Field
from .seen import Seen


class Exact:
    """One run of one side: its variables, and the numbers of its tensors.

    Args:
        field: the primes and keys of the run, the same on both sides.
        shared: names a memory that all ranks of this process share; "" makes one.
    """

    def __init__(self, field: Field, shared: str = "") -> None:
        self.field = field
        self.memory = _shared_memory(field, shared) if shared else Memory(field)
        self._given: Mapping[str, torch.Tensor] = {}

    def again(self, given: Mapping[str, torch.Tensor]) -> Exact:
        """A further run on the same memory; variables of these names are tensors, any shape, that have numbers."""
        other = copy(self)
        other._given = given
        return other

    dtype = NOMINAL

    @property
    def seen(self) -> Seen:
        """What the run went through."""
        self.memory.seen.zeros = self.field.zeros - self.memory.zeros_before
        return self.memory.seen

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Compute exactly in this thread while the block runs."""
        with watching(self.memory), ExactMode(self.memory):
            yield

    def draw(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """Make a contiguous tensor of any shape the variable `name`, unless it holds whole numbers; returns it."""
        if name in self._given and x.is_floating_point():
            self.memory.write(x, self.memory.read(self._given[name]))
        elif x.is_floating_point():
            self.memory.draw(x, name)
        return x

    def plain(self, x: torch.Tensor) -> torch.Tensor:
        """The values of a tensor of any shape, in its own dtype."""
        return self.memory.shadow(x).to(x.dtype) if self.memory.holds(x) else x

    def taken(self, x: torch.Tensor) -> torch.Tensor | None:
        """The numbers of a result, (rows, *shape); None where it is not floating-point, or has none."""
        return self.memory.read(x).clone() if self.memory.holds(x) else None

    def split(self, x: torch.Tensor, *, exponents: bool = False) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """The shadow of a result of any shape, float64, and its residues modulo each p, int32.

        Whole and complex numbers have none.

        With `exponents`, also those of its exponents modulo each q, so that `joined` loses nothing.
        """
        if x.is_complex():
            return torch.view_as_complex(self.memory.read(torch.view_as_real(x))[0].clone()), ()
        if not x.is_floating_point():
            return x, ()
        rows = self.memory.read(x)
        return rows[0].clone(), tuple(self.field.residues(rows, exponents=exponents))

    def joined(
        self, shadow: torch.Tensor, residues: Sequence[torch.Tensor], dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        """A new tensor with the numbers that `split` gave, any shape, nominally in `dtype` (None: that of `shadow`)."""
        dtype = dtype or shadow.dtype
        if not residues:  # of whole numbers
            return shadow.to(dtype, copy=True)
        return self.memory.new(self.field.from_residues(shadow, residues), dtype)

    def same(self, actual: torch.Tensor, expected: torch.Tensor) -> bool | None:
        """Whether the residues of `actual` modulo each p are those of `expected`, both of one shape.

        Elements of which `actual` knows none are left out; None where those of `expected` are unknown, or all.
        """
        rows = list(self.field.value_rows)
        own, right = self.memory.read(actual), self.memory.read(expected)
        known = ~own[rows].isnan().any(0)
        if not known.any() or right[rows].isnan().any(0)[known].any():
            return None
        return bool(self.field.same(own, right)[known].all())

    def follows(self, x: torch.Tensor) -> bool:
        """Whether a tensor of any shape depends on variables, as far as was seen; whole numbers are decisions."""
        return self.memory.holds(x) or not x.is_floating_point()


_memories: weakref.WeakValueDictionary[str, Memory] = weakref.WeakValueDictionary()


def _shared_memory(field: Field, name: str) -> Memory:
    found = _memories.get(name)
    if found is None:
        found = _memories[name] = Memory(field)
    return found
