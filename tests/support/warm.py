"""Python programs that find torch loaded: forks of one process, which saves the import (2 s of a core) in each.

Only what is not tp_harness is loaded before the fork, so a program imports the tool itself, as it would on its own.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from living import lives, marked

MARK = "TP_HARNESS_TEST"  # in the environment of the server, and so of all that descends from it
PATIENCE = 120.0  # seconds for a server to be there

_SERVER = """
import contextlib, importlib, json, os, signal, socket, sys
import jinja2, numpy.random, psutil, rich.live, rich.spinner, rich.table, safetensors.torch, torch.distributed
import torch.utils.flop_counter, xml.etree.ElementTree
from torch.distributed.elastic.agent.server import local_elastic_agent
for name in sys.argv[2:]:
    with contextlib.suppress(ImportError):  # then the program says that it is absent
        importlib.import_module(name)
control = socket.socket(fileno=int(sys.argv[1]))
signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # reaped by the kernel
assert len(os.listdir("/proc/self/task")) == 1, "a fork would lack the other threads, and keep their locks"
while True:
    message, fds, _, _ = socket.recv_fds(control, 1 << 20, 2)
    if not message:
        os._exit(0)
    child = os.fork()
    if not child:
        break
    for fd in fds:
        os.close(fd)
    control.send(str(child).encode())
control.close()
signal.signal(signal.SIGCHLD, signal.SIG_DFL)
for fd, stream in zip(fds, (1, 2)):
    os.dup2(fd, stream)
    os.close(fd)
request = json.loads(message)
os.environ.clear()
os.environ.update(request["environment"])
os.chdir(request["folder"])
sys.argv = ["-c", *request["arguments"]]
exec(compile(request["code"], "<string>", "exec"), {"__name__": "__main__"})
"""


@dataclass
class Program:
    """A running program, with the part of `subprocess.Popen` that tests use."""

    pid: int
    streams: tuple[socket.socket, socket.socket]

    def poll(self) -> int | None:
        """None while it runs; its exit code is not known here."""
        return None if lives(self.pid) else 0

    def send_signal(self, number: signal.Signals) -> None:
        """Nothing happens if it has ended."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it wrote to standard output and standard error, once no process holds them any more."""
        end = None if timeout is None else time.monotonic() + timeout
        texts = {stream: b"" for stream in self.streams}
        with selectors.DefaultSelector() as selector:
            for stream in self.streams:
                selector.register(stream, selectors.EVENT_READ)
            while selector.get_map():
                ready = selector.select(None if end is None else max(0.0, end - time.monotonic()))
                if not ready:
                    raise TimeoutError(f"still running after {timeout} s: {texts}")
                for key, _ in ready:
                    data = key.fileobj.recv(65536)  # type: ignore[union-attr]
                    texts[key.fileobj] += data  # type: ignore[index]
                    if not data:
                        selector.unregister(key.fileobj)
                        key.fileobj.close()  # type: ignore[union-attr]
        output, errors = (text.decode() for text in texts.values())
        return output, errors


class Server:
    """The process that the programs are forks of. It ends with this one.

    Args:
        libraries: modules that it imports beside torch.
    """

    def __init__(self, libraries: Sequence[str]) -> None:
        self.mark = uuid.uuid4().hex
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _SERVER, str(theirs.fileno()), *libraries],
                env=os.environ | {"OMP_NUM_THREADS": "1", MARK: self.mark},
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
            )
        self._control.settimeout(PATIENCE)

    def start(self, code: str, *arguments: str, environment: Mapping[str, str]) -> Program:
        """Run the code as `python -c` would, in this process's folder and environment with these changes."""
        values = os.environ | {"OMP_NUM_THREADS": "1", MARK: self.mark, **environment}
        request = {"code": code, "arguments": arguments, "environment": dict(values), "folder": os.getcwd()}
        pairs = [socket.socketpair() for _ in range(2)]
        socket.send_fds(self._control, [json.dumps(request).encode()], [theirs.fileno() for _, theirs in pairs])
        for _, theirs in pairs:
            theirs.close()
        return Program(int(self._control.recv(64)), (pairs[0][0], pairs[1][0]))

    def processes(self) -> list[int]:
        """Ids of the live processes of all its programs, however deep and in whatever session."""
        return [process.pid for process in marked(MARK, self.mark) if process.pid != self._process.pid]


@functools.cache
def server(*libraries: str) -> Server:
    """The one of this process that has imported these modules."""
    return Server(libraries)
