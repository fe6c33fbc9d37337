"""Where ranks wait for one another: each brings something and takes away what all have brought.

Here, the threads of one process. A rank that is in a function of this file waits for others: that is how
launch/stacks.py tells it from a rank that the others wait for.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Meets(Protocol):
    """Ranks that meet, threads or processes."""

    @property
    def turn(self) -> AbstractContextManager[Any]:
        """Held while a rank starts a program."""

    def exchange(self, rank: int, value: Any) -> list[Any]:
        """What every rank brought, by rank: JSON values."""


def awaited(call: Callable[[], T]) -> T:
    """What the call returns; it waits for a program with collectives, so for every rank that takes part in it."""
    return call()


class Turn:
    """Held by one thread at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        """Wait for the one that holds it."""
        self._lock.acquire()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._lock.release()


class Meeting:
    """For `size` threads. `turn` is held by one of them at a time.

    A thread that cannot go on calls `leave`; the others then get threading.BrokenBarrierError, now or when they come.
    """

    def __init__(self, size: int) -> None:
        self.turn = Turn()
        self._brought: list[Any] = [None] * size
        self._barrier = threading.Barrier(size)

    def exchange(self, rank: int, value: Any) -> list[Any]:
        """What every rank brought, by rank."""
        self._brought[rank] = value
        self._barrier.wait()
        everything = list(self._brought)
        self._barrier.wait()  # nobody brings something new before all have taken this
        return everything

    def leave(self) -> None:
        """Let nobody wait for this thread."""
        self._barrier.abort()
