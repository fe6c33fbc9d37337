"""The folder of a run's temporary files, which is removed when the run ends, in whatever way. No torch.

The run holds a lock on its folder, and a small process of its own removes the folder if the run is killed. What a
killed machine or container leaves is removed by the next run: a folder without a lock belongs to no running process.

Not covered: file systems that cannot lock a folder (some network ones); nothing is swept there.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from .interrupts import deferred_interrupts

PREFIX = "tp-harness-run-"

# Waits for the end of its standard input, which the run holds open; its ranks may still write for a moment.
_JANITOR = """
import os, shutil, sys, time
sys.stdin.buffer.read()
end = time.monotonic() + 30
while os.path.exists(sys.argv[1]) and time.monotonic() < end:
    shutil.rmtree(sys.argv[1], ignore_errors=True)
    time.sleep(0.05)
"""


class WorkFolder:
    """A new folder in `place`. As a context manager it gives its path, and removes it at the end.

    Raises:
        OSError: the folder cannot be made.
    """

    def __init__(self, place: Path) -> None:
        self._janitor: subprocess.Popen[bytes] | None = None
        self._lock: int | None
        with deferred_interrupts():  # once the janitor runs, an interruption leaves no folder
            self.path, self._lock = _make_locked(place)
            self._start_janitor()

    def _start_janitor(self) -> None:
        with suppress(OSError):  # without one, the next run sweeps
            self._janitor = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _JANITOR, str(self.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                start_new_session=True,  # so that Ctrl-C does not reach it
            )

    def remove(self) -> None:
        """Remove the folder and all that it holds; may be called again."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._janitor is not None:
            self._janitor.kill()
            self._janitor.communicate()
            self._janitor = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_error: object) -> None:
        self.remove()


def sweep(places: Iterable[Path]) -> tuple[Path, ...]:
    """Remove the folders of this user's dead runs; returns those removed."""
    return tuple(folder for place in places for folder in sorted(place.glob(f"{PREFIX}*")) if _remove_dead(folder))


def lock_folder(folder: Path) -> int | None:
    """A descriptor that holds the folder's lock while it, or a copy of it in a child, is open; None if locked already.

    Raises:
        OSError: it is no folder, or a link, or may not be read.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:  # a file system without locks: no other process can lock it either
        pass
    return descriptor


def _make_locked(place: Path) -> tuple[Path, int]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))
        with suppress(FileNotFoundError):  # swept before it was locked
            lock = lock_folder(folder)
            if lock is not None and os.fstat(lock).st_nlink:
                return folder, lock


def _remove_dead(folder: Path) -> bool:
    try:
        if folder.lstat().st_uid != os.getuid():
            return False
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:  # removed meanwhile, or no folder
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
        return not folder.exists()
    except OSError:  # its run goes on, or the file system has no locks
        return False
    finally:
        os.close(descriptor)
