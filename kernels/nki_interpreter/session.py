"""The running simulation: target, memory totals and engine registers, one per thread.

Ranks may be threads of one process, so nothing here is shared between threads.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from tp_harness.kernels.nki_interpreter.accounting import Accounting
from tp_harness.kernels.nki_interpreter.targets import GEN2, PARTITIONS, NeuronTarget


class Simulation:
    """State of one kernel run."""

    def __init__(self, target: NeuronTarget, *, unwritten_reads: str) -> None:
        """Start with empty memories and unset registers."""
        self.target = target
        self.raise_on_unwritten = unwritten_reads == "raise"
        self.accounting = Accounting()
        # The accumulators of Scalar Engine; NaN stands for "never reset".
        self.reduce_registers = np.full(PARTITIONS, np.nan, dtype=np.float32)


_local = threading.local()


def current() -> Simulation | None:
    """Return this thread's running simulation, if there is one."""
    session: Simulation | None = getattr(_local, "session", None)
    return session


def target_name() -> str:
    """Return the target's name for messages; the default one outside a run."""
    session = current()
    return session.target.name if session is not None else GEN2.name


@contextmanager
def running(session: Simulation) -> Iterator[Simulation]:
    """Make `session` the one that instructions use."""
    before = current()
    _local.session = session
    try:
        yield session
    finally:
        _local.session = before
