"""Temporary folders: gone with their run, however it ends, and nobody else's with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tp_harness.system import interrupts, scratch_dir
from tp_harness.system.scratch_dir import PREFIX, WorkFolder, lock_folder, sweep

PATIENCE = 60.0  # seconds until a test gives up; never the measure of a pass


def wait_until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"waited in vain: {what}"
        time.sleep(0.02)


def test_a_folder_is_there_inside_and_gone_after(tmp_path: Path) -> None:
    with WorkFolder(tmp_path) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "file").write_text("x")
        assert folder.parent == tmp_path
        assert folder.stat().st_mode & 0o077 == 0, "nobody else reads weights or swaps a job"
    assert not list(tmp_path.iterdir())


def test_removing_twice_is_removing_once(tmp_path: Path) -> None:
    work = WorkFolder(tmp_path)
    work.remove()
    work.remove()
    assert not list(tmp_path.iterdir())


KILLED = """
import os, signal, sys
from pathlib import Path
from tp_harness.system.scratch_dir import WorkFolder
folder = WorkFolder(Path(sys.argv[1])).path
(folder / "weights").write_text("x")
print(folder, flush=True)
os.kill(0 if sys.argv[2] == "group" else os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("whom", ["process", "group"])
def test_a_killed_run_leaves_no_folder(tmp_path: Path, whom: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), whom],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        start_new_session=True,
    )
    assert (run.returncode, Path(run.stdout.strip()).parent) == (-signal.SIGKILL, tmp_path)
    wait_until(lambda: not list(tmp_path.iterdir()), "the folder to be removed")


def test_the_next_run_sweeps_what_nobody_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch_dir, "_JANITOR", "")  # as when the whole machine was killed
    subprocess.run([sys.executable, "-c", "0"], check=True)
    dead = tmp_path / f"{PREFIX}dead"
    dead.mkdir()
    (dead / "weights").write_text("x")
    others = tmp_path / "tp-harness-bench-1"
    others.mkdir()
    with WorkFolder(tmp_path) as alive:
        assert sweep([tmp_path, tmp_path / "absent"]) == (dead,)
        assert alive.exists() and others.exists()
        assert sweep([tmp_path]) == ()


def test_a_sweep_follows_no_link(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("x")
    (tmp_path / f"{PREFIX}link").symlink_to(precious)
    (tmp_path / f"{PREFIX}file").write_text("x")
    assert sweep([tmp_path]) == ()
    assert (precious / "file").exists()


def test_a_sweep_leaves_what_belongs_to_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / f"{PREFIX}dead").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(os, "getuid", lambda: -1)
        assert sweep([tmp_path]) == ()
    assert len(sweep([tmp_path])) == 1


def test_a_lock_is_held_by_one(tmp_path: Path) -> None:
    first = lock_folder(tmp_path)
    assert first is not None
    assert lock_folder(tmp_path) is None
    os.close(first)
    second = lock_folder(tmp_path)
    assert second is not None
    os.close(second)


@pytest.fixture
def heard() -> Iterator[None]:
    """A test runner in the background ignores Ctrl-C, and with it these tests would."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize("numbers", [(signal.SIGINT,), (signal.SIGTERM, signal.SIGINT, signal.SIGTERM)])
def test_the_first_signal_interrupts_and_the_others_do_not(numbers: tuple[signal.Signals, ...]) -> None:
    cleaned = False
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), interrupts.one_interrupt():
        interrupts.check_interrupt()
        try:
            os.kill(os.getpid(), numbers[0])
            time.sleep(PATIENCE)
        finally:
            for number in numbers[1:]:
                os.kill(os.getpid(), number)
            cleaned = True
    assert cleaned
    assert before == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))


@pytest.mark.usefixtures("heard")
def test_an_interruption_that_python_lost_is_found() -> None:
    class Swallows:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGINT)

    seen: list[object] = []
    hook, sys.unraisablehook = sys.unraisablehook, seen.append
    try:
        with interrupts.one_interrupt():
            held = [Swallows()]
            held.clear()
            assert seen, "the exception went nowhere"
            with pytest.raises(KeyboardInterrupt, match="interrupted"):
                interrupts.check_interrupt()
        interrupts.check_interrupt()
    finally:
        sys.unraisablehook = hook


@pytest.mark.usefixtures("heard")
def test_deferred_interrupts_wait_whichever_thread_takes_them() -> None:
    done, released = False, threading.Event()
    threading.Thread(target=released.wait, daemon=True).start()
    with pytest.raises(KeyboardInterrupt), interrupts.one_interrupt():
        with interrupts.deferred_interrupts():
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # so that the other thread takes it
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
            done = True
        time.sleep(PATIENCE)
    released.set()
    assert done
