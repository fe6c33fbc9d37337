"""A process that runs tests as a tenant of the pool: one core of its own on Neuron, and a block for each marked test.

Why no run of tests can deadlock on cores:

1. A test's block is taken whole before the test starts and given back when it is torn down; a process that holds one
   asks for no other (core_pool.py). So a process that holds cores waits for none, and each block comes free.
2. A process that has opened a NeuronCore keeps it until the process ends. A worker that had opened its
   own core for a 1-core test would hold it while another test, or itself, waits for all 32. So where larger tests
   (or jobs, by `tp_group`) were chosen too, the body of a 1-core test is called in a forked child (forked_call.py),
   whose end frees the core, and a larger test starts its ranks as subprocesses. The workers themselves never open
   a device; one that does stops the run with a sentence, because nothing else could free its core.
3. Where only 1-core tests without jobs were chosen, a worker opens its own core once, and keeps it until its process
   ends, which xdist's workers do at the end of the run. It waits for that core alone, which no other living process
   may call its own (a place, `CorePool.settle`; without one it refuses to run), and ahead of every other request. So
   it waits only for tests that end by themselves, and its run ends; larger tests of other runs wait until then.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ..errors import UsageError
from ..system.core_pool import CorePool, CoreTimeoutError, Lease
from ..system.environment import become
from .core_block import CoreBlock, block_environment
from .marks import degree_of, fixture_names
from .report_properties import Properties
from .settings import FOLDER, Settings
from .tp_group import TpGroup

DEVICE = "/dev/neuron"  # what open files of the Neuron runtime begin with

_LEASE = pytest.StashKey[Lease]()
_BLOCK = pytest.StashKey[CoreBlock]()
_REFUSAL = pytest.StashKey[str]()


class Tenant:
    """Takes blocks for tests and gives them back. Opens the pool when it is first needed."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._user = dict(os.environ)
        self._mixed = True
        self._pool: CorePool | None = None
        self._core: int | None = None
        self._kept: Lease | None = None

    @property
    def pool(self) -> CorePool:
        """The cores of the machine."""
        if self._pool is None:
            self._pool = CorePool(self._settings.locks, self._settings.cores)
        return self._pool

    def bind(self) -> str:
        """Reserve a NeuronCore for this process before a test module can import torch_xla; returns a line about it."""
        self._core = self.pool.settle()
        environment = block_environment(self._user, self._core, 1, self._settings)
        become(environment)
        return (
            f"tp-harness: {len(self._settings.cores)} NeuronCores; this process uses core {self._core} "
            "(-p no:tp_harness leaves the devices alone)"
        )

    def expect(self, items: Iterable[pytest.Item]) -> None:
        """Learn which tests were chosen: whether some of them have cores used by other processes than this one."""
        self._mixed = any((degree_of(item) or 0) > 1 or "tp_group" in fixture_names(item) for item in items)

    def calls_in_child(self, item: pytest.Item) -> bool:
        """Whether the test's body must be called in a child: one core, and a process that would keep it."""
        forks = self._settings.fork or (self._settings.neuron and self._mixed)
        return forks and _BLOCK in item.stash and item.stash[_BLOCK].count == 1

    def acquire(self, item: pytest.Item, degree: int) -> None:
        """Wait for `degree` cores. What goes wrong is kept for `refusal`: the test must fail, and not the run."""
        own = (self._core,) if degree == 1 and self._core is not None else None
        try:
            lease = self._kept or self.pool.acquire(
                degree, within=own, ahead=own is not None and not self._mixed, timeout=self._settings.wait
            )
            block = CoreBlock(first=lease.first, count=degree, settings=self._settings)
            _ = block.env  # where the user's own variables contradict a verification, this says so
        except (CoreTimeoutError, UsageError) as error:
            item.stash[_REFUSAL] = str(error)
            return
        item.stash[_LEASE] = lease
        item.stash[_BLOCK] = block
        acquired = lease.acquired if self._kept is None else time.monotonic()
        Properties(item.user_properties).acquired(lease.first, acquired, lease.waited)

    @contextmanager
    def surroundings(self, item: pytest.Item) -> Iterator[None]:
        """While a larger test is called: the environment of a job on its cores, as for build_module's processes."""
        block = item.stash.get(_BLOCK, None)
        if not self._settings.neuron or block is None or block.count == 1:
            yield
            return
        before = dict(os.environ)
        become(block.env)
        try:
            yield
        finally:
            become(before)

    def release(self, item: pytest.Item) -> None:
        """Give the block back, unless this process has opened a device and so keeps it; a second call does nothing."""
        lease = item.stash.get(_LEASE, None)
        if lease is not None:
            del item.stash[_LEASE]
            Properties(item.user_properties).released(time.monotonic())
        if self._core is not None and _holds_device():
            self._keep(item, lease)
        elif lease is not None:
            lease.release()

    def _keep(self, item: pytest.Item, lease: Lease | None) -> None:
        if self._kept is None and lease is None:
            item.session.shouldfail = (
                f"{item.nodeid} opened a NeuronCore that it did not ask for: mark it, for example @pytest.mark.tp(1)."
            )
        elif self._mixed:
            item.session.shouldfail = (
                f"{item.nodeid} opened a NeuronCore in the process that runs tests, which keeps it until the process "
                "ends, so that larger tests would wait for ever: open it in the test's own body, or in tp_group.run."
            )
        self._kept = self._kept or lease

    def close(self) -> None:
        """Close the locks; a process that opened a device keeps its own until it ends."""
        if self._core is not None:
            become(self._user)
        if self._pool is not None and self._kept is None:
            self._pool.close()


def refusal(item: pytest.Item) -> str | None:
    """Why the item got no cores; None if it got them."""
    return item.stash.get(_REFUSAL, None)


def block_of(item: pytest.Item, missing: str) -> CoreBlock:
    """The block that the item holds; fails the test with the sentence `missing` where it holds none."""
    if _BLOCK not in item.stash:
        pytest.fail(missing, pytrace=False)
    return item.stash[_BLOCK]


def group_of(item: pytest.Item, missing: str) -> TpGroup:
    """A job of as many ranks as the item holds cores."""
    block = block_of(item, missing)
    return TpGroup(
        block,
        fds=item.stash[_LEASE].fds,
        folder=item.config.stash[FOLDER],
        title=item.nodeid,
        report=Properties(item.user_properties),
    )


def _holds_device() -> bool:
    """Whether this process has a Neuron device open."""
    for link in Path("/proc/self/fd").iterdir():
        try:
            if os.readlink(link).startswith(DEVICE):
                return True
        except OSError:  # the descriptor of the listing itself
            continue
    return False
