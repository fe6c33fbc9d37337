"""Work spread over new processes. They are spawned: a process in which torch has threads may hang after a fork."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def in_processes(run: Callable[[T], R], units: Iterable[T]) -> Iterator[R]:
    """Yield `run(unit)` of every unit, as they finish, in as many processes as there are cores.

    `run` must be a function of a module, and units and results must be picklable. If a `run` raises, or this process is
    interrupted, all processes are ended and the exception is raised.
    """
    units = list(units)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    pool = ProcessPoolExecutor(min(cores, len(units)), mp_context=multiprocessing.get_context("spawn"))
    try:
        for future in as_completed([pool.submit(run, unit) for unit in units]):
            yield future.result()
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    pool.shutdown()
