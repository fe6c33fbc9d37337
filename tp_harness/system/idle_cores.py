"""More than one thread for a computation that runs alone: the oracle of a large module."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch

MOST = 16  # threads; more do not speed up a product of a few tokens
LARGE_BYTES = 1 << 28  # of weights; the products of smaller modules are too short for several threads
LOOK_SECONDS = 0.05


@contextmanager
def idle_cores(weight_bytes: int) -> Iterator[None]:
    """Inside, torch computes with as many threads as cores are idle now, if `weight_bytes` is LARGE_BYTES or more.

    No more than that: threads wait for each other after every product, and one that shares its core delays all.
    """
    before = torch.get_num_threads()
    if weight_bytes >= LARGE_BYTES:
        torch.set_num_threads(max(before, min(MOST, _idle())))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _idle(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """The number of cores that this process may use and no other process uses now, at most its container's.

    `quota`: the file in which a control group says so, as CPU time per period, or "max" for no limit.
    """
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    busy = psutil.cpu_percent(interval=LOOK_SECONDS, percpu=True)
    idle = sum(1 - percent / 100 for core, percent in enumerate(busy) if core in allowed)
    try:
        share, period = map(int, quota.read_text().split())
    except (OSError, ValueError):
        return round(idle)
    return round(min(idle, share / period))
