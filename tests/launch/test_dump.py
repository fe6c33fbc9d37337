"""Stacks on request: from a process that computes, waits or keeps Python's lock, which goes on as before."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tp_harness.launch.dump import ASK, INSIST

PATIENCE = 60.0  # seconds; never the measure of a pass
PROGRAM = """
import ctypes, faulthandler, os, sys, threading, time
from tp_harness.launch.dump import write_stacks_on_request

def compute():
    while True:
        sum(deep(i % 9) for i in range(50))

def deep(n):
    return n and 1 + deep(n - 1)

def come_and_go():
    while True:
        thread = threading.Thread(target=deep, args=(50,))
        thread.start()
        thread.join()

def wait():
    threading.Event().wait()

def keep_the_lock():
    ctypes.PyDLL(None).read(os.pipe()[0], ctypes.create_string_buffer(1), 1)

faulthandler.enable()
write_stacks_on_request()
print("up", flush=True)
for name in sys.argv[2:]:
    threading.Thread(target=globals()[name], daemon=True).start()
globals()[sys.argv[1]]()
"""


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


def running(log: Path, *threads: str) -> subprocess.Popen[str]:
    """A process whose main thread does the first, and others the rest."""
    with log.open("a") as errors:
        command = [sys.executable, "-c", PROGRAM, *threads]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
    assert process.stdout and process.stdout.readline() == "up\n"
    return process


def ask(process: subprocess.Popen[str], log: Path, number: signal.Signals) -> str:
    """What was written, once the main thread's stack is there down to its first frame."""
    start, end = log.stat().st_size, time.monotonic() + PATIENCE
    process.send_signal(number)
    while not (text := log.read_bytes()[start:].decode()).endswith(" in <module>\n"):
        assert process.poll() is None, log.read_text()[-2000:]
        assert time.monotonic() < end, text
        time.sleep(0.001)
    return text


@pytest.fixture
def ended() -> Iterator[list[subprocess.Popen[str]]]:
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("threads", [("wait", "compute"), ("compute",), ("come_and_go", "come_and_go")], ids="-".join)
def test_a_process_outlives_three_hundred_requests(
    log: Path, ended: list[subprocess.Popen[str]], threads: tuple[str, ...]
) -> None:
    """faulthandler, in a signal's handler, ends one in about a hundred of these with a segmentation fault."""
    ended.append(running(log, *threads))
    for _ in range(300):
        ask(ended[0], log, ASK)
    assert "Segmentation" not in log.read_text()


def test_where_c_code_keeps_the_lock_the_second_signal_is_heard(log: Path, ended: list[subprocess.Popen[str]]) -> None:
    ended.append(running(log, "keep_the_lock"))
    while " in keep_the_lock\n" not in ask(ended[0], log, INSIST):
        time.sleep(0.01)  # it is not there yet
    written = log.read_text()
    ended[0].send_signal(ASK)
    time.sleep(0.1)
    assert log.read_text() == written
    assert " in keep_the_lock\n" in ask(ended[0], log, INSIST)
