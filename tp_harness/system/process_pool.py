"""Work spread over processes that start anew, because torch has threads by now and a fork would hang on them."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def in_processes(run: Callable[[T], R], units: Iterable[T]) -> Iterator[R]:
    """`run(unit)` of every unit, as they finish, in as many processes as there are cores; an interruption ends them.

    `run` must be a function of a module, and units and results must be picklable.
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
