"""Where ranks meet: each brings something and takes away what all have brought. Here, the threads of one process."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from typing import Any, Protocol


class Meets(Protocol):
    """Ranks that meet, threads or processes."""

    @property
    def turn(self) -> AbstractContextManager[Any]:
        """Held while a rank starts a program."""

    def exchange(self, rank: int, value: Any) -> list[Any]:
        """What every rank brought, by rank: JSON values."""


class Meeting:
    """For `size` threads. `turn` is held by one of them at a time.

    A thread that cannot go on calls `leave`; the others then get threading.BrokenBarrierError, now or when they come.
    """

    def __init__(self, size: int) -> None:
        self.turn = threading.Lock()
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
