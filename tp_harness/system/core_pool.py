"""The cores of this machine as locks on files, shared by every process that opens the same folder. No torch.

A core is a file and holding it is flock(2): the kernel gives it back when the last process that has the lock's
descriptor ends, however it ends, so there are no stale locks and nothing to clean up. A waiting process has a ticket,
a numbered file that it keeps locked for the same reason; core_packing.py says who gets which block. Every decision is
made under one mutex, held for about a millisecond.

Why nothing can deadlock: a block is taken whole, in one step under the mutex, and whoever holds a block asks for no
other one (`CorePool` refuses it). So no process ever holds a core and waits for another.

Not covered: processes that use cores without asking here; folders on a network file system; Windows.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import UsageError
from .core_packing import CoreRequest, place

POLL_SECONDS = 0.03
SETTLE_SECONDS = 5.0  # a killed worker's children may keep its place for a moment


class CoreTimeoutError(RuntimeError):
    """No cores became free in time; the message says which processes hold them."""


@dataclass(kw_only=True)
class Lease:
    """Cores `first` to `first + count - 1`, held until `release`. Times are in seconds of the monotonic clock."""

    first: int
    count: int
    acquired: float
    waited: float
    fds: tuple[int, ...] = field(repr=False)

    def release(self) -> None:
        """Give the cores back, also where a child of this process still has the descriptors; a second call is idle."""
        for fd in self.fds:
            fcntl.flock(fd, fcntl.LOCK_UN)
            os.close(fd)
        self.fds = ()


class CorePool:
    """The cores `cores` (ascending), with their locks in `folder`, which every user of them must name alike.

    Raises:
        UsageError: the folder cannot be made or written to.
    """

    def __init__(self, folder: Path, cores: tuple[int, ...]) -> None:
        self.folder, self.cores = folder, cores
        self._held: Lease | None = None
        self._probes: dict[int, int] = {}  # core -> descriptor, of those looked at so far
        try:
            if not folder.is_dir():
                folder.mkdir(parents=True, exist_ok=True)
                folder.chmod(0o1777)  # for the other users of the machine
            self._gate = self._open("mutex")
        except OSError as error:
            raise UsageError(f"cannot keep the locks of the cores in {folder}: {error.strerror}.") from None

    def acquire(
        self, count: int, *, within: tuple[int, ...] | None = None, ahead: bool = False, timeout: float = 3600.0
    ) -> Lease:
        """Wait for an aligned block of `count` cores.

        Args:
            count: how many cores.
            within: only these cores; default: all of the pool.
            ahead: served before every request without it, however old. For a core that is kept until the process
                ends: a request for all cores waits for that process, which must therefore not wait for the request.
            timeout: seconds.

        Raises:
            UsageError: no block of that size exists in the pool.
            CoreTimeoutError: none was free in time.
            RuntimeError: this process holds cores of the pool already.
        """
        if self._held and self._held.fds:
            raise RuntimeError("this process holds cores already: waiting for more could deadlock")
        request = CoreRequest(count=count, cores=self.cores if within is None else within)
        if not request.starts:
            raise UsageError(f"no block of {count} cores fits into {names(request.cores)}.")
        begin = time.monotonic()
        with self._ticket(request, ahead) as number:
            while True:
                with self._mutex():
                    first = self._turn(number)
                    if first is not None:
                        self._held = self._take(first, count, begin)
                        return self._held
                if time.monotonic() - begin > timeout:
                    raise CoreTimeoutError(self._complaint(request, timeout))
                time.sleep(POLL_SECONDS)

    def settle(self) -> int:
        """Assign a core to this process until it ends; to use the core, `acquire` it as well. Returns its number.

        No two processes are assigned the same core: one that keeps its core would make the other wait for its end.

        Raises:
            UsageError: every core is assigned to another process, and remained so for SETTLE_SECONDS.
        """
        end = time.monotonic() + SETTLE_SECONDS
        while (core := self._vacant()) is None:
            if time.monotonic() > end:
                raise UsageError(
                    f"each of the cores {names(self.cores)} belongs to a process that runs tests: end other runs, or "
                    "use fewer workers with -n."
                )
            time.sleep(POLL_SECONDS)
        return core

    def _vacant(self) -> int | None:
        """A core that was not assigned to any process, and now is to this one: the descriptor is never closed."""
        for core in self.cores:
            fd = self._open(f"home-{core}")
            if _locks(fd):
                return core
            os.close(fd)
        return None

    def free(self) -> tuple[int, ...]:
        """The cores that nobody holds now."""
        with self._mutex():
            return tuple(self._free(self.cores))

    def close(self) -> None:
        """Close what this object has open, cores that it holds included."""
        if self._held:
            self._held.release()
        for fd in (*self._probes.values(), self._gate):
            os.close(fd)

    def _free(self, cores: Iterable[int]) -> Iterator[int]:
        for core in cores:
            if core not in self._probes:
                self._probes[core] = self._open(f"core-{core}")
            if _locks(self._probes[core]):
                fcntl.flock(self._probes[core], fcntl.LOCK_UN)
                yield core

    def _turn(self, number: int) -> int | None:
        """The first core of the block that is this ticket's now, or None. Under the mutex."""
        queue = self._queue()  # another run's pool may have other cores
        free = self._free({core for request in queue.values() for core in request.cores})
        grant = place(list(queue.values()), free)[list(queue).index(number)]
        return grant.first if grant.ready else None

    def _take(self, first: int, count: int, begin: float) -> Lease:
        fds = []
        for core in range(first, first + count):
            fd = self._open(f"core-{core}")
            fds.append(fd)
            if not _locks(fd):
                raise RuntimeError(f"core {core} was locked outside of the mutex in {self.folder}")
        now = time.monotonic()
        return Lease(first=first, count=count, acquired=now, waited=now - begin, fds=tuple(fds))

    def _queue(self) -> dict[int, CoreRequest]:
        """The live tickets by number: those ahead, then the oldest first; dead owners' are removed. Under the mutex."""
        queues: tuple[dict[int, CoreRequest], dict[int, CoreRequest]] = ({}, {})
        for number, path in self._tickets().items():
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if _locks(fd):
                    with contextlib.suppress(OSError):  # another user's: it cannot be removed, and is skipped each time
                        path.unlink()
                    continue
                count, cores, ahead = json.loads(os.read(fd, 65536))
            finally:
                os.close(fd)
            queues[not ahead][number] = CoreRequest(count=count, cores=tuple(cores))
        return queues[0] | queues[1]

    def _tickets(self) -> dict[int, Path]:
        return {int(path.name.removeprefix("ticket-")): path for path in sorted(self.folder.glob("ticket-*"))}

    @contextlib.contextmanager
    def _ticket(self, request: CoreRequest, ahead: bool) -> Iterator[int]:
        with self._mutex():
            number = max(self._tickets(), default=0) + 1
            path = self.folder / f"ticket-{number:09d}"
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
            fcntl.flock(fd, fcntl.LOCK_EX)
            os.write(fd, json.dumps([request.count, request.cores, ahead]).encode())
        try:
            yield number
        finally:
            with self._mutex():
                path.unlink(missing_ok=True)
                fcntl.flock(fd, fcntl.LOCK_UN)
                os.close(fd)

    @contextlib.contextmanager
    def _mutex(self) -> Iterator[None]:
        fcntl.flock(self._gate, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._gate, fcntl.LOCK_UN)

    def _open(self, name: str) -> int:
        """A new descriptor of a file, with a lock of its own. Read-only is enough to lock another user's file."""
        path = self.folder / name
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def _complaint(self, request: CoreRequest, timeout: float) -> str:
        holders = ", ".join(f"{core} by {who}" for core, who in self._holders().items()) or "none"
        return (
            f"waited {timeout:g} s for {request.count} of the cores {names(request.cores)}; held: {holders}. "
            "End those processes, or wait longer with --neuron-wait."
        )

    def _holders(self) -> dict[int, str]:
        """Which process locked which core, as far as /proc/locks tells."""
        inodes = {os.fstat(fd).st_ino: core for core, fd in self._probes.items()}
        found = {}
        with contextlib.suppress(OSError):
            for line in Path("/proc/locks").read_text().splitlines():
                fields = line.split()
                if "FLOCK" in fields and "->" not in fields:
                    core = inodes.get(int(fields[5].rpartition(":")[2]))
                    if core is not None:
                        found[core] = f"process {fields[4]}"
        return dict(sorted(found.items()))


def names(cores: tuple[int, ...]) -> str:
    """Cores as in NEURON_RT_VISIBLE_CORES: "0-7,16"."""
    runs: list[list[int]] = []
    for core in cores:
        if runs and core == runs[-1][1] + 1:
            runs[-1][1] = core
        else:
            runs.append([core, core])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _locks(fd: int) -> bool:
    """Lock the file if it is unlocked; True when this process has the lock now."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
