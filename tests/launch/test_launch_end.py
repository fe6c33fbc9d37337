"""The launcher's processes end with the main process, however that ends, and do not wait for one that is stopped."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import psutil
import pytest
from launching import PATIENCE, entry, start, wait_until
from living import lives
from tp_harness.launch import RankLauncher
from warm import Program, server


def test_killed_zygote_is_reported(tmp_path: Path) -> None:
    with RankLauncher.fork(entry) as launcher:
        running = start(launcher, tmp_path, "sleep", size=2)
        wait_until(lambda: len(list(tmp_path.glob("*.up"))) == 2, "ranks to sleep")
        family = psutil.Process(launcher._zygote).children(recursive=True)
        os.kill(launcher._zygote, signal.SIGKILL)
        outcome = running.wait()
        assert (outcome.kind, "ended unexpectedly" in outcome.message) == ("crash", True)
        wait_until(lambda: not any(lives(process) for process in family), "all to end")
        with pytest.raises(RuntimeError, match="closed"):
            start(launcher, tmp_path, "sum_ranks")


def test_close_ends_all_and_leaves_no_zombie(tmp_path: Path) -> None:
    launcher = RankLauncher.fork(entry)
    running = start(launcher, tmp_path, "sleep", size=2, timeout=None)
    zygote = psutil.Process(launcher._zygote)
    launcher.close()
    assert not zygote.is_running()
    assert running.wait().kind == "stopped"
    launcher.close()
    with pytest.raises(RuntimeError, match="closed"):
        start(launcher, tmp_path, "sum_ranks")


def listening_ports() -> set[int]:
    return {c.laddr.port for c in psutil.net_connections("tcp") if c.status == "LISTEN"}


def shared_memory() -> set[str]:
    return {name for name in os.listdir("/dev/shm") if name.startswith(("sem.", "torch_", "psm_"))}


def abandoned(names: set[str]) -> set[str]:
    """Those that no living process has mapped: others on this machine use shared memory as well."""
    used = set()
    for maps in Path("/proc").glob("[0-9]*/maps") if names else ():
        with contextlib.suppress(OSError):
            used |= {line.rpartition("/dev/shm/")[2] for line in maps.read_text().splitlines() if "/dev/shm/" in line}
    return names - used


SCRIPT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test runner in the background would have it ignored
from pathlib import Path
sys.path.insert(0, {tests!r})
from launching import RankLauncher, entry, start, wait_until
if {stop}:
    import os, pytest
    from launching import expire_only_when
    from tp_harness.launch.process import process_state
    main = os.getpid()
    expire_only_when(pytest.MonkeyPatch(), lambda record: process_state(main) == "T")
if {handle}:
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
with RankLauncher.fork(entry) as launcher:
    running = start(launcher, Path({folder!r}), "sleep", size={size}, timeout={timeout})
    if {stop}:
        wait_until(lambda: len(list(Path({folder!r}).glob("*.up"))) == {size}, "ranks to sleep")
        signal.raise_signal(signal.SIGSTOP)
    print(running.wait().kind)
"""


def start_main(
    folder: Path, size: int, timeout: float | None, *, handle: bool = False, stop: bool = False, **environment: str
) -> Program:
    """A main process that starts sleeping ranks, stops if it shall, and waits for them."""
    tests = str(Path(__file__).parents[1] / "support")
    script = SCRIPT.format(tests=tests, handle=handle, stop=stop, folder=str(folder), size=size, timeout=timeout)
    return server().start(script, environment=environment)


@pytest.mark.parametrize(
    ("name", "handle"), [("SIGINT", True), ("SIGTERM", True), ("SIGTERM", False), ("SIGKILL", False)]
)
def test_nothing_outlives_the_main_process(tmp_path: Path, name: str, handle: bool) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    shared_before = shared_memory()
    main = start_main(tmp_path, 8, None, handle=handle, TMPDIR=str(temporary))
    try:
        wait_until(lambda: len(list(tmp_path.glob("*.up"))) == 8 or main.poll() is not None, "ranks to sleep")
        family = psutil.Process(main.pid).children(recursive=True)
        assert len(family) == 8 + 3, "ranks, zygote, warden, agent"
        assert len({os.getpgid(process.pid) for process in family} | {os.getpgid(main.pid)}) > 1
        ports = {c.laddr.port for p in family for c in p.net_connections() if c.status == "LISTEN"}
        assert len(ports) == 8
        main.send_signal(signal.Signals[name])
        _, errors = main.communicate(timeout=PATIENCE)  # standard error ends when no process holds it
    finally:
        main.kill()
    wait_until(lambda: not any(lives(process) for process in family), f"all to end after {name}")
    # Waited for, because other programs may use the same port or name for a moment.
    wait_until(lambda: not ports & listening_ports(), "the ports of the ranks to be free")
    wait_until(lambda: not abandoned(shared_memory() - shared_before), "shared memory to be gone")
    assert not list(temporary.iterdir())
    if handle:
        assert not list((tmp_path / "work").iterdir())
    assert ("KeyboardInterrupt" in errors) == (name == "SIGINT")


def test_ranks_do_not_wait_for_a_main_process_that_is_stopped(tmp_path: Path) -> None:
    """They sleep, and so end with their timeout; what became of them is told when the main process goes on."""
    main = start_main(tmp_path, 2, 0.2, stop=True)
    try:
        process = psutil.Process(main.pid)
        wait_until(lambda: process.status() == psutil.STATUS_STOPPED, "the main process to stop")
        [zygote] = process.children()
        wait_until(lambda: not zygote.children(), "the ranks to end")
        assert process.status() == psutil.STATUS_STOPPED
        main.send_signal(signal.SIGCONT)
        assert main.communicate(timeout=PATIENCE) == ("timeout\n", "")
    finally:
        main.kill()
