"""Which processes live. psutil alone calls one that is dying "running" until it is a zombie, or gone."""

from __future__ import annotations

import os

import psutil

HERE = "this rank is here, and goes no further"  # what ranks print right before they block; `launching.waits` reads it


def lives(process: psutil.Process | int) -> bool:
    """Whether it can still run code of its own.

    One that is dying loses its memory first, then its files, and only then becomes a zombie: between these it has no
    environment, and by its state it runs. A process id that another process has by now does not live either, where
    the psutil.Process is an older one.
    """
    try:
        process = psutil.Process(process) if isinstance(process, int) else process
        return process.is_running() and process.memory_info().vms > 0  # 0 for a zombie as well
    except psutil.NoSuchProcess:
        return False


def marked(name: str, value: str) -> list[psutil.Process]:
    """Living processes with this in their environment, however deep and in whatever session; this one excepted."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(name) == value and process.pid != os.getpid() and lives(process):
                found.append(process)
        except (psutil.Error, OSError):  # gone, or another user's
            continue
    return found
