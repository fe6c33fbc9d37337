"""Sources: of what a tensor of the sharded module is made, where the reference has others.

A source is a frozen value. It names tensors of the reference, and moves their elements without changing one, so that
the same tensor is had back bit for bit.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch

from ...errors import UsageError

STAR = "*"  # in a name: any text without a dot, such as the number of a layer
Get = Callable[[str], torch.Tensor]


class RenameError(UsageError):
    """A source that cannot be, or tensors that it cannot be made of."""


class Source(ABC):
    """How a tensor of the sharded module is made of tensors of the reference."""

    @abstractmethod
    def bound(self, stars: tuple[str, ...], known: Iterable[str]) -> Source:
        """The same with names that are complete.

        Args:
            stars: the texts that the stars of the sharded name stand for; those of a source stand for them in order.
            known: the names of the reference.
        """

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """The names in the reference, each as often as it is used."""

    @abstractmethod
    def make(self, get: Get) -> torch.Tensor:
        """The full tensor of the sharded module, of any shape, made of those that `get` gives by name."""


@dataclass(frozen=True)
class AsItIs(Source):
    """One tensor of the reference, as it is."""

    name: str

    def bound(self, stars: tuple[str, ...], known: Iterable[str]) -> Source:
        """As `Source.bound`."""
        parts = self.name.split(STAR)
        texts = (*stars[: len(parts) - 1], *(STAR,) * (len(parts) - 1 - len(stars)), "")
        return AsItIs("".join(part + text for part, text in zip(parts, texts, strict=True)))

    @property
    def names(self) -> tuple[str, ...]:
        """As `Source.names`."""
        return (self.name,)

    def make(self, get: Get) -> torch.Tensor:
        """As `Source.make`, any shape."""
        return get(self.name)


@dataclass(frozen=True, init=False)
class Several(Source):
    """Several sources along a dimension; a name with more stars than the sharded one stands for all that fit.

    Args:
        sources: names of the reference, or other sources, in order.
        dim: the dimension along which they lie in the result.
    """

    sources: tuple[Source, ...]
    dim: int = 0

    def __init__(self, *sources: str | Source, dim: int = 0) -> None:
        if not sources:
            raise RenameError(
                f"{type(self).__name__} has nothing that it is made of; names of the reference are needed."
            )
        object.__setattr__(self, "sources", tuple(map(source, sources)))
        object.__setattr__(self, "dim", dim)

    def bound(self, stars: tuple[str, ...], known: Iterable[str]) -> Source:
        """As `Source.bound`."""
        known = tuple(known)
        found: list[Source] = []
        for own in self.sources:
            found += [own.bound((*stars, *more), known) for more in _further(own, stars, known)]
        return type(self)(*found, dim=self.dim)

    @property
    def names(self) -> tuple[str, ...]:
        """As `Source.names`."""
        return tuple(name for own in self.sources for name in own.names)

    def made(self, get: Get) -> list[torch.Tensor]:
        """The tensors of the sources, of any shapes."""
        return [own.make(get) for own in self.sources]


class Concat(Several):
    """Tensors one after the other: [q | k | v], [gate | up]."""

    def make(self, get: Get) -> torch.Tensor:
        """As `Source.make`: the shape of one, and along `dim` the sum of their lengths."""
        return torch.cat(self.made(get), dim=self.dim)


class Stack(Several):
    """Tensors of one shape along a new dimension `dim`: one weight of all experts."""

    def make(self, get: Get) -> torch.Tensor:
        """As `Source.make`: the shape of one, with the number of them at `dim`."""
        return torch.stack(self.made(get), dim=self.dim)


class Interleave(Several):
    """Tensors of one shape, element by element in turn along `dim`: gate 0, up 0, gate 1, up 1, ..."""

    def make(self, get: Get) -> torch.Tensor:
        """As `Source.make`: the shape of one, and along `dim` the sum of their lengths."""
        made = self.made(get)
        dim = self.dim % made[0].ndim
        return torch.stack(made, dim=dim + 1).flatten(dim, dim + 1)


@dataclass(frozen=True)
class OfOne(Source):
    """A source that is made of one other, or of one tensor of the reference by its name."""

    name: str | Source

    def bound(self, stars: tuple[str, ...], known: Iterable[str]) -> Source:
        """As `Source.bound`."""
        return replace(self, name=source(self.name).bound(stars, known))

    @property
    def names(self) -> tuple[str, ...]:
        """As `Source.names`."""
        return source(self.name).names

    def whole(self, get: Get) -> torch.Tensor:
        """The tensor that it is made of, of any shape."""
        return source(self.name).make(get)


@dataclass(frozen=True)
class Part(OfOne):
    """`length` elements of a fused tensor along `dim`, `step` apart, from `start` on; None: all to its end."""

    start: int
    length: int | None = None
    dim: int = 0
    step: int = 1

    def make(self, get: Get) -> torch.Tensor:
        """As `Source.make`: the shape of the fused one, but for `dim`; a view of it.

        Raises:
            RenameError: it has fewer elements.
        """
        whole = self.whole(get)
        dim = self.dim % whole.ndim
        last = self.start if self.length is None else self.start + (self.length - 1) * self.step
        if not 0 <= self.start <= last < whole.shape[dim]:
            raise RenameError(f"{self} reaches beyond dimension {dim} of {' '.join(self.names)} {list(whole.shape)}.")
        end = None if self.length is None else last + 1
        return whole[(slice(None),) * dim + (slice(self.start, end, self.step),)]


@dataclass(frozen=True)
class Item(OfOne):
    """One of a stack along `dim`: number `index`, or (None) the number for which a star of the sharded name stands."""

    index: int | None = None
    dim: int = 0

    def bound(self, stars: tuple[str, ...], known: Iterable[str]) -> Source:
        """As `Source.bound`.

        Raises:
            RenameError: there is no number.
        """
        used, index = sum(name.count(STAR) for name in self.names), self.index
        if index is None:
            if len(stars) <= used or not stars[used].isdecimal():
                raise RenameError(f"{self} needs an index, or a star for its number in the sharded name.")
            index = int(stars[used])
        return replace(self, name=source(self.name).bound(stars[:used], known), index=index)

    def make(self, get: Get) -> torch.Tensor:
        """As `Source.make`: the shape of the stack without `dim`; a view of it.

        Raises:
            RenameError: the stack has fewer.
        """
        whole = self.whole(get)
        assert self.index is not None  # it is bound
        if self.index >= whole.shape[self.dim]:
            raise RenameError(f"{' '.join(self.names)} {list(whole.shape)} has no item {self.index}.")
        return whole.select(self.dim, self.index)


@dataclass(frozen=True)
class Transposed(OfOne):
    """A matrix, or a stack of them, as (columns, rows) where the reference has (rows, columns)."""

    def make(self, get: Get) -> torch.Tensor:
        """As `Source.make`: the last two dimensions of (..., rows, columns) exchanged; a vector stays."""
        whole = self.whole(get)
        return whole.transpose(-1, -2) if whole.ndim > 1 else whole


def source(given: object) -> Source:
    """A source as it is, or a name of the reference as one.

    Raises:
        RenameError: it is neither.
    """
    if isinstance(given, str):
        return AsItIs(given)
    if isinstance(given, Source):
        return given
    raise RenameError(f"rename holds {given!r:.60}; a name of the reference is needed, or Concat(...), Stack(...), ...")


def pattern_of(name: str) -> re.Pattern[str]:
    """What a name with stars stands for."""
    return re.compile("([^.]+)".join(map(re.escape, name.split(STAR))))


def _further(own: Source, stars: tuple[str, ...], known: tuple[str, ...]) -> list[tuple[str, ...]]:
    """What further stars of a source stand for, in the order of numbers; one () where it has none, or nothing fits."""
    name = max(own.names, key=lambda name: name.count(STAR))
    if name.count(STAR) <= len(stars):
        return [()]
    [first] = AsItIs(name).bound(stars, known).names
    found = [match.groups() for other in known if (match := pattern_of(first).fullmatch(other))]
    return sorted(found, key=lambda texts: [(int(t), t) if t.isdecimal() else (-1, t) for t in texts]) or [()]
