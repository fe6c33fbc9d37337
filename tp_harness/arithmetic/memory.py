"""Shadow memory: beside the storage of a floating-point tensor lie the exact numbers of its elements.

Views share a storage and so need no rule; what is written through one view is read through another. The plain elements
of such a storage are nan: code that reads them past the dispatcher computes nan, and code that writes them is found
out, so that neither can lead to a proof.

A parameter or input is a variable: its residues are drawn where they are read, and are nowhere stored.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..libraries.torch_private import storage_id, storage_reference
from .residues.field import Field
from .seen import Seen
from .variables import Variable, Variables, extent, places

_NESTED = (list, tuple, dict)
SWEEP_STORAGES = 512  # new ones between two searches for those that nobody holds any more
SWEEP_BYTES = 1 << 25  # or new numbers of so many bytes


@dataclass
class Stored:
    """The numbers of a whole storage, (rows, elements), float64; `dtype` is that of its elements."""

    reference: Any
    numbers: torch.Tensor
    dtype: torch.dtype


class Memory:
    """The numbers of all tensors of a process; ranks that are threads share one, as they share tensors."""

    def __init__(self, numbers: Field) -> None:
        self.field, self.seen = numbers, Seen()
        self.zeros_before = numbers.zeros  # of other runs in this field
        self._entries: dict[int, Stored | Variables] = {}
        self._pending: dict[int, list[Callable[[], bool]]] = {}  # storage -> what completes the receives into it
        self._kept: list[torch.Tensor] = []
        self._handed_out: dict[int, Any] = {}  # storages of constants whose address code has
        self._known: tuple[Stored, Any, torch.Tensor] | None = None  # what `known` gave last
        self._made = self._bytes = 0  # storages and bytes of numbers since the last search

    # which tensors have numbers

    def holds(self, x: object) -> bool:
        """Whether numbers lie beside a tensor; a tensor of whole numbers or booleans has none."""
        return isinstance(x, torch.Tensor) and storage_id(x) in self._entries and x.is_floating_point()

    def look(self, *values: object) -> tuple[bool, bool]:
        """Whether any tensor in nested lists, tuples and dicts has numbers, and whether any other shares its storage
        with one that has.
        """
        held = hidden = False
        for x in values:
            if isinstance(x, torch.Tensor):
                if storage_id(x) in self._entries:
                    floating = x.is_floating_point()
                    held, hidden = held or floating, hidden or not floating
            elif isinstance(x, _NESTED):
                inner = self.look(*(x.values() if isinstance(x, dict) else x))
                held, hidden = held or inner[0], hidden or inner[1]
        return held, hidden

    def draw(self, x: torch.Tensor, name: str) -> None:
        """Make a contiguous floating-point tensor of any shape the variable `name`; its values stay where they are."""
        if not x.numel():
            return
        self._sweep()
        found = self._entries.get(storage_id(x))
        if not isinstance(found, Variables):
            found = self._entries[storage_id(x)] = Variables(storage_reference(x))
        found.put(Variable(name, *extent(x), x.dtype))

    # reading

    def read(self, x: torch.Tensor) -> torch.Tensor:
        """The numbers of a floating-point tensor: (rows, *shape); a tensor without any is constant.

        They are unknown, and it is seen, where bits were written past the dispatcher or are read as another dtype.
        """
        found = self._entries.get(storage_id(x))
        if found is None:
            return self._constant(x)
        if isinstance(found, Variables):
            return self._drawn(x, found)
        self._complete(x)
        if self._wrong(x, found):
            return self.unknown(x.detach().to(torch.float64))
        return self._seen_as(x, found.numbers)

    def shadow(self, x: torch.Tensor) -> torch.Tensor:
        """The float64 values of a tensor of any shape, by which code decides; any other tensor as it is."""
        if not self.holds(x):
            return x
        found = self._entries[storage_id(x)]
        return x.detach().to(torch.float64) if isinstance(found, Variables) else self.read(x)[0]

    def unknown(self, shadow: torch.Tensor) -> torch.Tensor:
        """Numbers with a shadow (float64, any shape) and nothing else: no proof can rest on them."""
        out = torch.full((self.field.rows, *shadow.shape), math.nan, dtype=torch.float64)
        out[0] = shadow
        return out

    def known(self, x: torch.Tensor) -> torch.Tensor:
        """The numbers of a tensor of any shape, every exponent known; those of the last one asked for are kept.

        A linear that is computed a few rows at a time asks for its input each time.
        """
        found, numbers = self._entries.get(storage_id(x)), self.read(x)
        if not isinstance(found, Stored):
            return numbers  # of a variable or constant all are known
        form = (x.storage_offset(), x.shape, x.stride())
        if self._known is None or self._known[0] is not found or self._known[1] != form:
            self._known = found, form, self.field.known(numbers)
        return self._known[2]

    def _constant(self, x: torch.Tensor) -> torch.Tensor:
        x = x.detach()
        if x.numel() == 1:
            return self.field.scalar(x.item(), x.dtype).view(self.field.rows, *x.shape)
        if not self.seen.rounded:
            self.seen.rounded = not bool((x == x.to(torch.bfloat16)).logical_or(x.isnan()).all())
        return self.field.constants(x)

    def _drawn(self, x: torch.Tensor, found: Variables) -> torch.Tensor:
        """The numbers of a tensor of a storage that has variables."""
        part = found.of(x)
        if part is not None:
            return self.field.draw(part.name, x.detach(), places(x, part))
        if not x.numel() or not (found.unwritten or found.touches(x)):
            return self.field.constants(x)
        if any(part.dtype != x.dtype for part in found.parts):
            self.seen.escape("the bits of a parameter are read as another dtype")
            return self.unknown(x.detach().to(torch.float64))
        return self._seen_as(x, self._piecewise(x, found))

    def _piecewise(self, x: torch.Tensor, found: Variables) -> torch.Tensor:
        """The numbers of the whole storage of `x`: (rows, elements)."""
        whole = x.detach().as_strided((x.untyped_storage().nbytes() // x.itemsize,), (1,), 0)
        beside = self.unknown(torch.full(whole.shape, math.nan, dtype=torch.float64))
        out = beside if found.unwritten else self.field.constants(whole)
        for part in found.parts:
            own = slice(part.begin // x.itemsize, part.end // x.itemsize)
            out[:, own] = self.field.draw(part.name, whole[own], places(whole[own], part))
        return out

    def _complete(self, x: torch.Tensor) -> None:
        waiting = self._pending.pop(storage_id(x), None)
        left = [complete for complete in waiting or () if not complete()]
        if left:
            self._pending[storage_id(x)] = left

    def _wrong(self, x: torch.Tensor, found: Stored) -> bool:
        """Whether the plain elements are not those that `write` left."""
        if x.dtype != found.dtype:
            self.seen.escape(f"the bits of a {found.dtype} tensor are read as {x.dtype}")
        elif not x.detach().isnan().all():
            self.seen.escape("a tensor was written past torch's dispatcher, by NumPy or by an extension")
        else:
            return False
        return True

    # writing

    def new(self, numbers: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """A new tensor of these numbers, (rows, *shape), in a nominal dtype."""
        return self.new_of(numbers, torch.full(numbers.shape[1:], math.nan, dtype=dtype))

    def new_of(self, numbers: torch.Tensor, plain: torch.Tensor) -> torch.Tensor:
        """The new contiguous tensor `plain`, which is nan, with these numbers of its shape."""
        self._sweep(numbers.nbytes)
        own = numbers.reshape(numbers.shape[0], -1)  # a copy where it is a view in another order
        if own.untyped_storage().data_ptr() != own.data_ptr() or own.stride(-1) != 1 or not own.is_contiguous():
            own = own.clone(memory_format=torch.contiguous_format)
        self._entries[storage_id(plain)] = Stored(storage_reference(plain), own, plain.dtype)
        return plain

    def write(self, x: torch.Tensor, numbers: torch.Tensor) -> None:
        """Write numbers, (rows, *shape) or what broadcasts to it, into a tensor, a view of whatever storage."""
        found = self._stored(x)
        if self._wrong(x, found):
            found.numbers.fill_(math.nan)  # whichever of its elements these bits are
        else:
            self._seen_as(x, found.numbers).copy_(numbers)
        x.detach().fill_(math.nan)

    def _seen_as(self, x: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        """The numbers of a storage, (rows, elements), as the view that `x` is of it."""
        return numbers.as_strided((self.field.rows, *x.shape), (numbers.shape[1], *x.stride()), x.storage_offset())

    def _stored(self, x: torch.Tensor) -> Stored:
        """The numbers of the storage of `x`, which are about to change; what was received before is in them."""
        self._known = None
        found = self._entries.get(storage_id(x))
        if not isinstance(found, Stored):
            found = self._store(x)
        self._complete(x)
        return found

    def _store(self, x: torch.Tensor) -> Stored:
        """Give the whole storage of `x` numbers of its own: those of its constants or of its variable."""
        self._guard(x)
        count = x.untyped_storage().nbytes() // x.itemsize
        whole = x.detach().as_strided((count,), (1,), 0)
        before = self._entries.get(storage_id(x))
        numbers = self._piecewise(x, before) if isinstance(before, Variables) else self.read(whole)
        found = self._entries[storage_id(x)] = Stored(storage_reference(x), numbers, x.dtype)
        whole.fill_(math.nan)
        return found

    def unwritten(self, plain: torch.Tensor) -> torch.Tensor:
        """New memory of any shape that no operation has written yet: what is read of it is nan, and proves nothing."""
        self._sweep()
        self._entries[storage_id(plain)] = Variables(storage_reference(plain), unwritten=True)
        plain.fill_(math.nan)
        return plain

    def move(self, x: torch.Tensor, into: torch.Tensor) -> bool:
        """Note that `into` is to be a copy of `x`, both of any shape, if `x` is of a variable; False if that cannot be.

        So what a module copies of its parameters needs no memory for residues. The caller copies the values.
        """
        found, there = self._entries.get(storage_id(x)), self._entries.get(storage_id(into))
        part = found.of(x) if isinstance(found, Variables) else None
        if part is None or x.shape != into.shape or not (into.is_contiguous() and into.is_floating_point()):
            return False
        if torch.finfo(into.dtype).eps > torch.finfo(x.dtype).eps:
            return False
        copied = part.copied(x, into)
        whole = into.untyped_storage().nbytes() == into.nbytes
        if copied is None or not (isinstance(there, Variables) or (there is None and whole)):
            return False
        if not isinstance(there, Variables):
            self._guard(into)
            self._sweep()
            there = self._entries[storage_id(into)] = Variables(storage_reference(into))
        there.put(copied)
        return True

    def writable(self, x: torch.Tensor) -> torch.Tensor:
        """The numbers of a tensor of any shape, (rows, *shape), as a view that may be written to; its values become
        nan.
        """
        return self._seen_as(x, self._stored(x).numbers)

    def await_(self, x: torch.Tensor, complete: Callable[[], bool]) -> None:
        """Have `complete()` called before a tensor of any shape is read: it writes to it, or returns False as long as
        nobody has waited for what comes. Until then its numbers are unknown.
        """
        self.write(x, self.unknown(torch.full(x.shape, math.nan, dtype=torch.float64)))
        self._pending.setdefault(storage_id(x), []).append(complete)

    def hand_out(self, x: torch.Tensor, how: str) -> None:
        """Note that code got hold of a tensor's elements (any shape) or address, so that they may change unseen."""
        if storage_id(x) in self._entries:
            self.seen.escape(f"{how} handed out the elements of a tensor")
        else:
            self._handed_out[storage_id(x)] = storage_reference(x)

    def keep(self, buffers: list[torch.Tensor]) -> None:
        """Hold what (any shape) a message is sent from for as long as this memory lives."""
        self._kept += buffers

    def _guard(self, x: torch.Tensor) -> None:
        """Numbers come to a storage whose address code has: what it reads there is not seen."""
        held = self._handed_out.pop(storage_id(x), None)
        if (held is not None and not held.expired()) or not x.untyped_storage().resizable():
            self.seen.escape("a tensor whose memory NumPy or others have too got numbers that depend on variables")

    def _sweep(self, nbytes: int = 0) -> None:
        """Forget the numbers of storages that nobody holds, now and then; `nbytes` of new ones are to be held."""
        self._made, self._bytes = self._made + 1, self._bytes + nbytes
        if self._made < SWEEP_STORAGES and self._bytes < SWEEP_BYTES:
            return
        self._made = self._bytes = 0
        for key in [key for key, entry in self._entries.items() if entry.reference.expired()]:
            del self._entries[key]
