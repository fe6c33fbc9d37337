"""What is ambient for a while in a thread: its group, its mesh, the call that it runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")


@contextmanager
def holding(variable: ContextVar[T], value: T) -> Iterator[T]:
    """Give a variable this value in this thread for the duration, and then its former one."""
    token = variable.set(value)
    try:
        yield value
    finally:
        variable.reset(token)
