"""The exchange of values among ranks that are threads: each gives one and waits until it has those of all.

A rank that is in a function of this file waits for others: by that launch/stacks.py tells it from a rank that the
others wait for.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Meets(Protocol):
    """The exchange among ranks, be they threads or processes."""

    @property
    def turn(self) -> AbstractContextManager[Any]:
        """The lock that a rank holds while it starts a program."""

    def exchange(self, rank: int, value: Any) -> list[Any]:
        """Give `value` as `rank`; returns every rank's value, JSON values, in the order of ranks."""


def awaited(call: Callable[[], T]) -> T:
    """Call `call`, which waits for a program with collectives and so for every rank in it; returns what it returns."""
    return call()


class Turn:
    """A lock that one thread at a time holds."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        """Wait until no thread holds it, then hold it."""
        self._lock.acquire()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._lock.release()


class Meeting:
    """The exchange among `size` threads; one of them at a time holds `turn`."""

    def __init__(self, size: int) -> None:
        self.turn = Turn()
        self._brought: list[Any] = [None] * size
        self._barrier = threading.Barrier(size)

    def exchange(self, rank: int, value: Any) -> list[Any]:
        """Give `value` as `rank`; returns every rank's value, in the order of ranks.

        Raises:
            threading.BrokenBarrierError: a thread has called `leave`.
        """
        self._brought[rank] = value
        self._barrier.wait()
        everything = list(self._brought)
        self._barrier.wait()  # no rank writes its next value before all have read these
        return everything

    def leave(self) -> None:
        """End the exchange, for a thread that cannot continue: the others raise BrokenBarrierError."""
        self._barrier.abort()
