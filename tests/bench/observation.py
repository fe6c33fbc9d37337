"""A run with a fault in it, as a fork of this process, and what is seen of it: its end, its results, what it leaves."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import psutil
from injection import Fault, Injection
from tp_harness.launch import agent

sys.path.append(str(Path(__file__).parents[1] / "support"))
from living import marked

from tp_harness import cli
from tp_harness.prepare import prepare
from tp_harness.report import terminal
from tp_harness.results import resume
from tp_harness.system.scratch_dir import lock_folder
from tp_harness.verification import api

LOADED = (agent, api, resume, terminal)  # here, so that no fork has to, and so that files may be edited meanwhile
MARK = "TP_HARNESS_FAULT"
COMPONENTS = ("rmsnorm", "mlp", "unembedding")
TIMEOUT = 12.0  # seconds, of a case on the ranks, where the fault is a hang; those that start have 10 s, twice
GRACE = 10.0  # seconds beyond the timeout in which everything must be over
LIMIT = 180.0  # seconds after which a run is given up and killed


@dataclass
class Seen:
    """What a run came to. `seconds` is from the fault to the end of the last process."""

    code: int
    struck: bool
    seconds: float
    results: list[dict[str, Any]]
    errors: str
    left: list[str] = field(default_factory=list)

    def kept(self) -> int:
        """Results that say PASS."""
        return sum(result["status"] == "PASS" for result in self.results)


def observe(fault: Fault) -> Seen:
    """Run with the fault, and look at what is left afterwards."""
    with tempfile.TemporaryDirectory(prefix="faults-", dir=os.environ.get("TMPDIR")) as name:
        home = Path(name)
        for folder in ("shm", "tmp", "out"):
            (home / folder).mkdir()
        child = os.fork()
        if not child:
            _be_main(fault, home)
        code = _wait(child)
        end = time.monotonic() + GRACE
        # Who is killed, or whose folder was moved away, cannot remove the half-written file in it.
        killed = code == -signal.SIGKILL or fault.kind == "folder gone"
        while (_processes() or _files_left(home, killed)) and time.monotonic() < end:
            time.sleep(0.02)
        over = time.time()
        left = []
        for process in _processes():
            with contextlib.suppress(psutil.NoSuchProcess):  # it ended now, if late
                left.append(f"process {process.pid} {process.name()}")
                process.kill()
        struck = home / "struck"
        return Seen(
            code=code,
            struck=struck.exists(),
            seconds=over - float(struck.read_text()) if struck.exists() else float("nan"),
            results=_results(home),
            errors=(home / "errors").read_text(),
            left=left + _files_left(home, killed),
        )


def _be_main(fault: Fault, home: Path) -> NoReturn:
    code = 99
    try:
        code = _verify(fault, home)
    except BaseException as error:
        print(f"uncaught: {error!r}", file=sys.stderr)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _verify(fault: Fault, home: Path) -> int:
    """The run itself; returns the command's exit code."""
    os.setsid()
    output = os.open(home / "output", os.O_WRONLY | os.O_CREAT)
    errors = os.open(home / "errors", os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(errors, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    os.environ["TMPDIR"] = tempfile.tempdir = str(home / "tmp")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    prepare.SHM = home / "shm"
    Injection(fault, home).install()
    options = [word for component in COMPONENTS for word in ("--component", component)]
    options += ["--tp", f"1,{fault.tp}", "--draws", "1", "--dtype", "float32", "--out", str(home / "out")]
    options += ["--no-fault-control"]  # which would run the second component first, and be struck
    options += ["--timeout", str(TIMEOUT if fault.hangs else 120)]
    return cli.main(["verify", *options])


def _wait(child: int) -> int:
    end = time.monotonic() + LIMIT
    while time.monotonic() < end:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -99


def _processes() -> list[psutil.Process]:
    """Every living process that descends from this one, in whatever session, this one excepted."""
    return marked(MARK, os.environ[MARK])


def _files_left(home: Path, killed: bool) -> list[str]:
    """In the temporary places all, of the run's folder a half-written file and the lock; SIGKILL excuses the former."""
    left = [str(path.relative_to(home)) for folder in ("shm", "tmp") for path in (home / folder).iterdir()]
    for folder in (home / "out").iterdir():
        lock = lock_folder(folder)
        left += [f"lock of {folder.name}"] if lock is None else []
        if lock is not None:
            os.close(lock)
        left += [path.name for path in folder.iterdir() if path.suffix == ".part" and not killed]
    return left


def _results(home: Path) -> list[dict[str, Any]]:
    found = [json.loads(path.read_text())["results"] for path in (home / "out").glob("*/run.json")]
    return max(found, key=len, default=[])
