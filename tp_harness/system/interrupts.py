"""Ctrl-C and SIGTERM: the first ends the run, further ones cannot disturb its cleaning up. No torch."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_noted: list[str] = []


@contextmanager
def one_interrupt() -> Iterator[None]:
    """Inside, the first SIGINT or SIGTERM raises KeyboardInterrupt, and those after it do nothing.

    Cleaning up takes a bounded time; SIGKILL ends it. Signals that were ignored before (a job in the background)
    stay ignored.
    """
    if threading.current_thread() is not threading.main_thread():  # where Python does not allow signal handlers
        yield
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not set from Python
        _noted.clear()


@contextmanager
def deferred_interrupts() -> Iterator[None]:
    """Inside, SIGINT and SIGTERM wait. Uses handlers: if this thread masked them, another thread would receive them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting: list[int] = []
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    before = {number: handler for number, handler in handlers.items() if handler is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, lambda number, _frame: waiting.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        for arrived in dict.fromkeys(waiting):
            signal.raise_signal(arrived)


def check_interrupt() -> None:
    """Raise what a signal's handler has raised already, for long loops: Python drops an exception raised in a __del__.

    Raises:
        KeyboardInterrupt: a signal arrived, or `request_interrupt` was called.
    """
    if _noted:
        raise KeyboardInterrupt(_noted[0])


def request_interrupt(reason: str) -> None:
    """End the run at its next `check_interrupt`, for this reason. Any thread may call it; it cannot be taken back."""
    if not _noted:
        _noted.append(reason)


def _interrupt(number: int, _frame: FrameType | None) -> None:
    if not _noted:
        _noted.append("interrupted" if number == signal.SIGINT else f"ended by {signal.Signals(number).name}")
        raise KeyboardInterrupt(_noted[0])
