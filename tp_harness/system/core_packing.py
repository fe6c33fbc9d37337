"""Which aligned block of cores each waiting request gets: pure arithmetic, done anew at every poll. No locks.

A request for n cores gets a block that starts at a multiple of n, as Trn1 needs. Requests are looked at in the order
in which they came. One that fits gets its block. One that does not fit *reserves* the block that lacks the fewest
cores, and later requests may only use what is left.

Why every request is served, however many smaller ones keep coming (by induction, for the oldest one): nobody but it
may enter its reserved block R, so the number of cores that R lacks never rises while R stays reserved. R changes only
to a block that lacks fewer cores, or as many at a lower place, so it changes finitely often. What is in R ends, since
no holder of a block waits for another one. So R becomes whole, and the request has it. (core_pool.py puts requests of
processes that keep their core for good before all others: there are at most as many as cores, and they end too.)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass

ENCLOSING = (32, 8, 2)  # blocks worth keeping whole, largest first: the sizes Trn1 supports


@dataclass(frozen=True, kw_only=True)
class CoreRequest:
    """`count` neighbouring cores out of `cores` (ascending), from a multiple of `count` on."""

    count: int
    cores: tuple[int, ...]

    @property
    def starts(self) -> tuple[int, ...]:
        """The first core of every block that would do, ascending."""
        own = set(self.cores)
        return tuple(c for c in self.cores if c % self.count == 0 and own.issuperset(range(c, c + self.count)))


@dataclass(frozen=True, kw_only=True)
class Grant:
    """The block meant for a request; `ready` when it is free, else it is reserved until it is."""

    first: int
    ready: bool


def place(queue: Sequence[CoreRequest], free: Iterable[int]) -> list[Grant]:
    """One grant per request of the queue, oldest first; blocks that are ready do not overlap.

    Raises:
        ValueError: a request's cores hold no block of its size.
    """
    available = set(free)
    grants = []
    for request in queue:
        if not request.starts:
            raise ValueError(f"no block of {request.count} neighbouring cores in {list(request.cores)}")
        ready = [first for first in request.starts if _lacking(first, request.count, available) == 0]
        if ready:
            first = max(ready, key=lambda first: (_crowding(first, request.count, available), -first))
        else:
            first = min(request.starts, key=lambda first: (_lacking(first, request.count, available), first))
        available.difference_update(range(first, first + request.count))
        grants.append(Grant(first=first, ready=bool(ready)))
    return grants


def _lacking(first: int, count: int, available: Set[int]) -> int:
    return sum(core not in available for core in range(first, first + count))


def _crowding(first: int, count: int, available: Set[int]) -> tuple[int, ...]:
    """How full the blocks around this one are: filling those keeps others whole for larger requests."""
    around = ((first // size * size, size) for size in ENCLOSING if size > count)
    return tuple(_lacking(start, size, available) for start, size in around)
