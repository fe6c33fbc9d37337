"""Shadow memory: beside the storage of a floating-point tensor lie the exact numbers of its elements.

Views share a storage and so need no rule; what is written through one view is read through another. The plain elements
of such a storage are nan: code that reads them past the dispatcher computes nan, and code that writes them is found
out, so that neither can lead to a proof.

A parameter or input is a variable: its residues are drawn where they are read, and are nowhere stored.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from ..libraries.torch_private import storage_id, storage_reference
from .field import Field
from .seen import Seen

_NESTED = (list, tuple, dict)
SWEEP = 512  # new storages between two searches for those that nobody holds any more


@dataclass
class Stored:
    """The numbers of a whole storage, (rows, elements), float64; `dtype` is that of its elements."""

    reference: Any
    numbers: torch.Tensor
    dtype: torch.dtype


@dataclass
class Variable:
    """A part of a storage that holds a variable's plain values, from `begin` to `end` in bytes; `first` is the index of
    its first element in the whole variable.
    """

    name: str
    begin: int
    end: int
    dtype: torch.dtype
    first: int = 0


@dataclass
class Variables:
    """The variables of a storage."""

    reference: Any
    parts: list[Variable] = field(default_factory=list)


class Memory:
    """The numbers of all tensors of a process; ranks that are threads share one, as they share tensors."""

    def __init__(self, numbers: Field) -> None:
        self.field, self.seen = numbers, Seen()
        self._entries: dict[int, Stored | Variables] = {}
        self._pending: dict[int, list[Callable[[], None]]] = {}  # storage -> what completes the receives into it
        self._kept: list[torch.Tensor] = []
        self._handed_out: dict[int, Any] = {}  # storages of constants whose address code has
        self._made = 0

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
        begin = int(x.storage_offset()) * x.itemsize
        part = Variable(name, begin, begin + x.nbytes, x.dtype)
        found = self._entries.get(storage_id(x))
        if not isinstance(found, Variables):
            found = self._entries[storage_id(x)] = Variables(storage_reference(x))
        if not any((p.begin, p.name) == (begin, name) for p in found.parts):
            found.parts.append(part)

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
        size = found.numbers.shape[1]
        return found.numbers.as_strided((self.field.rows, *x.shape), (size, *x.stride()), x.storage_offset())

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

    def _constant(self, x: torch.Tensor) -> torch.Tensor:
        x = x.detach()
        if x.numel() == 1:
            return self.field.scalar(x.item(), x.dtype).view(self.field.rows, *x.shape)
        if not self.seen.rounded:
            self.seen.rounded = not bool((x == x.to(torch.bfloat16)).logical_or(x.isnan()).all())
        return self.field.constants(x)

    def _drawn(self, x: torch.Tensor, found: Variables) -> torch.Tensor:
        if not x.numel():
            return self.field.constants(x)
        at = x.storage_offset() * x.itemsize
        span = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
        part = next((p for p in found.parts if p.begin <= at and at + span * x.itemsize <= p.end), None)
        if part is None or part.dtype != x.dtype:
            self.seen.escape("the bits of a parameter are read as another dtype, or together with what lies beside it")
            return self.unknown(x.detach().to(torch.float64))
        index = torch.full((), part.first + int(x.storage_offset()) - part.begin // x.itemsize, dtype=torch.int64)
        for dim, (size, stride) in enumerate(zip(x.shape, x.stride(), strict=True)):
            index = index + (torch.arange(size) * stride).view(-1, *[1] * (x.dim() - dim - 1))
        wrapped = index.to(torch.int32)  # the lower 32 bits
        return self.field.draw(part.name, wrapped.view(x.shape), x.detach())

    def _complete(self, x: torch.Tensor) -> None:
        for complete in self._pending.pop(storage_id(x), ()):
            complete()

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
        self._sweep()
        own = numbers.reshape(numbers.shape[0], -1)  # a copy where it is a view in another order
        if own.untyped_storage().data_ptr() != own.data_ptr() or own.stride(-1) != 1 or not own.is_contiguous():
            own = own.clone(memory_format=torch.contiguous_format)
        self._entries[storage_id(plain)] = Stored(storage_reference(plain), own, plain.dtype)
        return plain

    def write(self, x: torch.Tensor, numbers: torch.Tensor) -> None:
        """Write numbers, (rows, *shape) or what broadcasts to it, into a tensor, a view of whatever storage."""
        found = self._entries.get(storage_id(x))
        if not isinstance(found, Stored):
            found = self._store(x)
        self._complete(x)
        if self._wrong(x, found):
            found.numbers.fill_(math.nan)  # whichever of its elements these bits are
        else:
            self.read(x).copy_(numbers)
        x.detach().fill_(math.nan)

    def _store(self, x: torch.Tensor) -> Stored:
        """Give the whole storage of `x` numbers of its own: those of its constants or of its variable."""
        self._guard(x)
        count = x.untyped_storage().nbytes() // x.itemsize
        whole = x.detach().as_strided((count,), (1,), 0)
        numbers = self.read(whole)
        found = self._entries[storage_id(x)] = Stored(storage_reference(x), numbers, x.dtype)
        whole.fill_(math.nan)
        return found

    def unwritten(self, plain: torch.Tensor) -> torch.Tensor:
        """New memory of any shape that no operation has written yet: what is read of it is nan, and proves nothing."""
        numbers = torch.full((self.field.rows, plain.untyped_storage().nbytes() // plain.itemsize), math.nan).double()
        self._sweep()
        self._entries[storage_id(plain)] = Stored(storage_reference(plain), numbers, plain.dtype)
        plain.fill_(math.nan)
        return plain

    def moved(self, x: torch.Tensor, copy: torch.Tensor) -> bool:
        """Make `copy`, a contiguous copy, of any shape, of a whole run of a variable's elements, that variable too, if
        it is one.

        So the parameters that a module copied into itself need no memory for their residues.
        """
        found = self._entries.get(storage_id(x))
        if not isinstance(found, Variables) or not x.is_contiguous() or not copy.is_contiguous() or not x.numel():
            return False
        at = x.storage_offset() * x.itemsize
        part = next((p for p in found.parts if p.begin <= at < p.end and p.dtype == x.dtype), None)
        if part is None or copy.untyped_storage().nbytes() != copy.nbytes:
            return False
        first = part.first + (at - part.begin) // x.itemsize
        self._entries[storage_id(copy)] = Variables(
            storage_reference(copy), [Variable(part.name, 0, copy.nbytes, copy.dtype, first)]
        )
        return True

    def await_(self, x: torch.Tensor, complete: Callable[[], None]) -> None:
        """Have `complete()`, which writes to a tensor of any shape, called before it is read."""
        if not isinstance(self._entries.get(storage_id(x)), Stored):
            self._store(x)
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

    def _sweep(self) -> None:
        self._made += 1
        if self._made % SWEEP == 0:
            gone = [key for key, entry in self._entries.items() if entry.reference.expired()]
            for key in gone:
                del self._entries[key]
