"""What a known mistake would have given: a signature computes the wrong tensor that its mistake makes.

It does so from the oracle's values before it and the parameters; fit.py says whether the ranks have that tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import nn

from ..judge.gather import join
from ..models import knowledge
from .site import Site, UnavailableError

Value = torch.Tensor | Sequence[torch.Tensor]
Step = tuple[str, Callable[[torch.Tensor], torch.Tensor]]  # the next leaf, and how its full value follows


class Guess(NamedTuple):
    """A wrong floating-point tensor: full, or one shard per rank; `detail` says which form of the mistake made it.

    `seen` is what it is compared with, where that is not the tensor itself (the sum over ranks, say). `remake` makes
    the value again for another site; without it, the signature is asked for all its guesses again. `level` takes the
    place of the signature's.
    """

    value: Value
    detail: str = ""
    seen: torch.Tensor | None = None
    remake: Callable[[Site], Value] | None = None
    level: int | None = None


@dataclass(frozen=True, kw_only=True)
class Signature:
    """A known mistake.

    Args:
        name: what results call it.
        sentence: what a user reads as the cause; `{detail}` is the guess's, `{tp}` the degree.
        on: the leaves it speaks of (`heads` of an attention block); none means any.
        guess: (site) -> the wrong tensors it could give at the site's leaf; may raise UnavailableError.
        level: 0 a mistake in one place, 1 one that many places can have, 2 a description of the numbers. Of those that
            fit, the lowest level is told.
    """

    name: str
    sentence: str
    guess: Callable[[Site], Iterator[Guess]]
    on: tuple[str, ...] = ()
    level: int = 0


class Tried(NamedTuple):
    """A guess with its signature, the site it was made for, and its index among the signature's guesses there."""

    signature: Signature
    place: Site
    number: int
    guess: Guess
    partly: bool = False  # made on the wrong ranks alone

    @property
    def level(self) -> int:
        """The guess's own level, or its signature's: 0, 1 or 2 as in `Signature`."""
        return self.signature.level if self.guess.level is None else self.guess.level


def shifted(letter: str, step: int) -> str:
    """The rank that is `step` ranks after `letter`, in words: `r + 1`, `r - 1`."""
    return f"{letter} {'-' if step < 0 else '+'} {abs(step)}"


class Knowledge(Protocol):
    """What a family says about the modules of its reference: known mistakes, and what the names of taps mean."""

    @property
    def SIGNATURES(self) -> tuple[Signature, ...]:  # noqa: N802  (a module's constant)
        """The known mistakes in the family's modules."""

    def maker(self, reference: nn.Module, name: str, /) -> tuple[str, str] | None:
        """The submodule and leaf whose value a tensor ("output.0", or a tap) is; None: another's module."""

    def steps(self, site: Site, /) -> dict[str, Step]:
        """How the value of each leaf of the site's module follows from that of another."""


def carry(site: Site, value: Value) -> Value:
    """Carry a guess at the site's leaf on to the tensor that was looked at; at that leaf it stays as it is.

    Args:
        value: as many float64 elements as the leaf's full tensor, in any shape, or one shard per rank.

    Returns:
        The full float64 tensor at `site.target`.

    Raises:
        UnavailableError: no family knows a step from the leaf on.
        PlacementError: the shards cannot be joined.
    """
    if site.leaf == site.target:
        return value
    leaf, full = site.leaf, value
    if not isinstance(full, torch.Tensor):
        full = join(site.evidence.case.taps[site.name(leaf)], list(full)).full
    steps: dict[str, Step] = {leaf: step for known in knowledge() for leaf, step in known.steps(site).items()}
    while leaf != site.target:
        if leaf not in steps:
            raise UnavailableError
        following, step = steps[leaf]
        full = step(full.reshape(site.tap(leaf).shape))
        leaf = following
    return full


def sum_of(parts: Iterable[torch.Tensor]) -> torch.Tensor:
    """The sum of all ranks' parts, in the one shape and dtype that they have."""
    return torch.stack(list(parts)).sum(dim=0)
