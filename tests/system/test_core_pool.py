"""Cores as locks between real processes: never shared, freed by every kind of end, served in turn."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tp_harness.errors import UsageError
from tp_harness.system.core_pool import CorePool, CoreTimeoutError, names

PATIENCE = 60.0  # seconds until a test gives up; never the measure of a pass
ALL = tuple(range(32))

# Takes blocks of the sizes in argv[3] (JSON) in turn, each for argv[4] seconds, and prints when it had which.
# It keeps the first one until its standard input ends.
TENANT = """
import json, sys, time
from pathlib import Path
from tp_harness.system.core_pool import CorePool
pool = CorePool(Path(sys.argv[1]), tuple(range(int(sys.argv[2]))))
for size in json.loads(sys.argv[3]):
    lease = pool.acquire(size)
    print(json.dumps([lease.first, size, lease.acquired]), flush=True)
    sys.stdin.read()
    time.sleep(float(sys.argv[4]))
    print(json.dumps(time.monotonic()), flush=True)
    lease.release()
"""


def tenant(
    folder: Path, sizes: list[int], seconds: float, pool: int = 32, stdin: int = subprocess.DEVNULL
) -> subprocess.Popen[str]:
    arguments = [str(folder), str(pool), json.dumps(sizes), str(seconds)]
    command = [sys.executable, "-c", TENANT, *arguments]
    return subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[CorePool]:
    pool = CorePool(tmp_path / "locks", ALL)
    yield pool
    pool.close()


def wait_until_busy(pool: CorePool, count: int) -> None:
    end = time.monotonic() + PATIENCE
    while len(pool.cores) - len(pool.free()) != count:
        assert time.monotonic() < end, f"{pool.free()} are free"
        time.sleep(0.01)


def first_line(process: subprocess.Popen[str]) -> list[float]:
    assert process.stdout
    line: list[float] = json.loads(process.stdout.readline())
    return line


def test_processes_never_share_a_core(tmp_path: Path) -> None:
    mixes = [[1, 8, 2, 1, 32], [8, 1, 1, 2, 8], [2, 32, 1, 8, 1], [1, 1, 8, 2, 2], [8, 2, 1, 1, 1]]
    processes = [tenant(tmp_path / "locks", sizes, 0.05, stdin=subprocess.PIPE) for sizes in mixes]
    firsts = [first_line(process) for process in processes]  # all have theirs, and none goes on before
    stays = []
    for process in processes:
        assert process.stdin
        process.stdin.close()
        process.stdin = None
    for process, first_stay, sizes in zip(processes, firsts, mixes, strict=True):
        output, _ = process.communicate(timeout=PATIENCE)
        lines = [first_stay, *map(json.loads, output.splitlines())]
        taken = list(zip(lines[::2], lines[1::2], strict=True))
        assert [size for (_, size, _), _ in taken] == sizes
        stays += [(first, size, begin, end) for (first, size, begin), end in taken]
    assert all(first % size == 0 for first, size, _, _ in stays)
    side_by_side = 0
    for i, (first, size, begin, end) in enumerate(stays):
        for other, other_size, other_begin, other_end in stays[:i]:
            if begin < other_end and other_begin < end:
                side_by_side += 1
                assert first + size <= other or other + other_size <= first
    assert side_by_side, "they ran one after the other, which proves nothing"


def test_a_killed_owner_frees_its_cores(pool: CorePool) -> None:
    process = tenant(pool.folder, [8], 3600)
    wait_until_busy(pool, 8)
    process.kill()
    process.communicate()
    assert pool.free() == ALL
    pool.acquire(32, timeout=PATIENCE).release()  # which also removes a ticket that it may have left
    assert not list(pool.folder.glob("ticket-*"))


def test_a_child_that_has_the_descriptors_keeps_the_cores_of_a_killed_owner(pool: CorePool) -> None:
    """So a job whose worker was killed keeps its cores until the last of its processes is gone."""
    lease = pool.acquire(2)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=lease.fds)
    for fd in lease.fds:
        os.close(fd)  # what the kernel does at the owner's death
    lease.fds = ()
    assert len(pool.free()) == 30
    child.communicate()
    assert pool.free() == ALL


def test_release_frees_cores_although_a_child_has_the_descriptors(pool: CorePool) -> None:
    lease = pool.acquire(2)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=lease.fds)
    lease.release()
    lease.release()
    assert pool.free() == ALL
    child.communicate()


def test_a_killed_waiter_leaves_the_queue(pool: CorePool, tmp_path: Path) -> None:
    lease = pool.acquire(1)
    waiter = tenant(pool.folder, [32], 0)
    end = time.monotonic() + PATIENCE
    while not list(pool.folder.glob("ticket-*")):
        assert time.monotonic() < end
        time.sleep(0.01)
    other = CorePool(pool.folder, ALL)
    with pytest.raises(CoreTimeoutError, match=r"waited 0.1 s for 1 of the cores 0-31; held: 0 by process \d+\. End"):
        other.acquire(1, timeout=0.1)  # the waiter is before it
    waiter.kill()
    waiter.communicate()
    other.acquire(1, timeout=PATIENCE).release()
    other.close()
    lease.release()
    assert not list(pool.folder.glob("ticket-*"))


def test_a_stopped_owner_is_named(pool: CorePool) -> None:
    process = tenant(pool.folder, [32], 3600)
    first_line(process)  # it has left the mutex, in which a stopped process would keep everybody out
    process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(CoreTimeoutError, match=f"0 by process {process.pid}, 1 by process {process.pid}, "):
            pool.acquire(2, timeout=0.1)
    finally:
        process.kill()
        process.communicate()


def test_all_cores_are_served_beside_an_endless_supply_of_small_requests(pool: CorePool) -> None:
    small = [tenant(pool.folder, [1, 2] * 10_000, 0.05) for _ in range(3)]
    try:
        for process in small:
            first_line(process)
        pool.acquire(32, timeout=PATIENCE).release()
        assert all(process.poll() is None for process in small), "they still take cores"
    finally:
        for process in small:
            process.kill()
            process.communicate()


def test_a_process_cannot_wait_while_it_holds(pool: CorePool) -> None:
    with_lease = pool.acquire(1)
    with pytest.raises(RuntimeError, match="could deadlock"):
        pool.acquire(1)
    with_lease.release()
    pool.acquire(32).release()


def test_runs_with_other_cores_share_what_they_have_in_common(pool: CorePool) -> None:
    half = CorePool(pool.folder, tuple(range(8)))
    lease = half.acquire(8)
    assert pool.free() == tuple(range(8, 32))
    assert pool.acquire(8).first == 8
    lease.release()
    with pytest.raises(UsageError, match=r"no block of 8 cores fits into 0-3,5-7\."):
        half.acquire(8, within=(0, 1, 2, 3, 5, 6, 7))
    half.close()


SETTLER = """
import sys
from pathlib import Path
from tp_harness.system import core_pool
core_pool.SETTLE_SECONDS = 0.2
try:
    print(core_pool.CorePool(Path(sys.argv[1]), (0, 1)).settle(), flush=True)
except core_pool.UsageError as error:
    print(error, flush=True)
input()
"""


def test_places_are_never_shared_and_taken_over(tmp_path: Path) -> None:
    def settle() -> tuple[subprocess.Popen[str], str]:
        command = [sys.executable, "-c", SETTLER, str(tmp_path / "locks")]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdout
        return process, process.stdout.readline().strip()

    first, second, third = settle(), settle(), settle()
    assert (first[1], second[1]) == ("0", "1")
    assert third[1] == (
        "each of the cores 0-1 belongs to a process that runs tests: end other runs, or use fewer workers with -n."
    )
    second[0].kill()
    second[0].communicate()
    fourth = settle()
    assert fourth[1] == "1"
    for process, _ in (first, third, fourth):
        process.communicate("\n")


def test_a_request_ahead_does_not_wait_for_those_that_wait(pool: CorePool) -> None:
    """A run keeps core 0; all 32 are waited for; the run's next worker must still get its core."""
    lease = pool.acquire(1, within=(0,), ahead=True)
    waiter = tenant(pool.folder, [32], 0)
    end = time.monotonic() + PATIENCE
    while not list(pool.folder.glob("ticket-*")):
        assert time.monotonic() < end
        time.sleep(0.01)
    other = CorePool(pool.folder, ALL)
    with pytest.raises(CoreTimeoutError):
        other.acquire(1, within=(5,), timeout=0.1)
    assert other.acquire(1, within=(5,), ahead=True, timeout=PATIENCE).first == 5
    other.close()
    lease.release()
    assert waiter.wait(PATIENCE) == 0


def test_an_impossible_folder_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"cannot keep the locks of the cores in .*: Not a directory\."):
        CorePool(tmp_path / "file" / "locks", ALL)


def test_names() -> None:
    assert [names(cores) for cores in ((), (3,), (0, 1, 2, 8), (1, 3, 4))] == ["", "3", "0-2,8", "1,3-4"]
