"""A module whose ranks stay alive and answer calls: what build_module returns, and what its ranks execute.

Ranks connect back over a Unix socket. A call sends the inputs to every rank and takes every rank's outputs, both
as safetensors; an end of file ends a rank, so none outlives the process that started it.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import tempfile
import traceback
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import nn

from ..case.case import Tensors
from ..case.tensor_paths import results_in
from ..errors import UsageError
from ..launch import RankLauncher, RunningRanks
from ..launch.outcome import rank_log
from ..neuron.log_patterns import advice, read_log
from ..parallel.group import TorchGroup, use_group
from ..parallel.placements import Placement, ReplicaError
from ..system.scratch_dir import WorkFolder

_HEADER = struct.Struct("<cQ")  # kind of message, length of what follows
TENSORS, ERROR, NOTE, EXACTLY = b"t", b"e", b"n", b"x"


@dataclass(frozen=True, kw_only=True)
class Made:
    """A rank's module, and a `note` on how it was made; rank 0's is passed on.

    `exactly` answers what `ask` asks of every rank beside calls: see exactly.py.
    """

    module: nn.Module
    note: str = ""
    exactly: Callable[[bytes], bytes] = bytes


MakeModule = Callable[[TorchGroup], Made]


class ShardedModuleError(RuntimeError):
    """The ranks of a built module could not be started, raised, or are gone."""


class ShardedModule:
    """Callable like the module it serves: full inputs in, full outputs out.

    Use it as a context manager, or call `close`; otherwise its ranks end with this object or this process.

    Args:
        make: called on every rank with the group; returns the module with this rank's shards loaded.
        tp_degree: number of ranks.
        output: the placement of every output.
        name: how verdicts call it.

    `note` is rank 0's of `make`, and `folder` is there as long as the ranks are.
    """

    def __init__(self, make: MakeModule, tp_degree: int, output: Placement, name: str = "module") -> None:
        self.tp_degree, self.output, self.name, self.note = tp_degree, output, name, ""
        folder = WorkFolder(Path(tempfile.gettempdir()))
        self.folder = folder.path
        self._launcher = RankLauncher.fork(partial(serve_rank, make))
        self._links: list[socket.socket] = []
        self._why = "they were closed"
        # holds no reference to self: it runs when self is gone, and at exit
        self.close = weakref.finalize(self, _close, self._launcher, self._links, folder)
        try:
            self._connect()
        except BaseException:
            self.close()
            raise

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor | Tensors:
        """Call the module on all ranks with the full inputs, any shapes and dtypes.

        Returns:
            The full outputs on the CPU, in the module's shapes and dtypes; one tensor if the module returns one.

        Raises:
            UsageError: an input is no tensor.
            ShardedModuleError: a rank raised or died; the message says which and why. All ranks are ended then.
            ReplicaError: the ranks' outputs differ where they must agree.
        """
        for i, x in enumerate(inputs):
            if not isinstance(x, torch.Tensor):
                raise UsageError(f"input {i} of the module is a {type(x).__name__}; a tensor is needed.")
        message = save({str(i): x.detach().contiguous() for i, x in enumerate(inputs)})
        answers = [load(answer) for answer in self.ask(TENSORS, message)]
        outputs = [self._join([answer[str(i)] for answer in answers]) for i in range(len(answers[0]))]
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def ask(self, kind: bytes, content: bytes) -> list[bytes]:
        """Send a message to every rank; returns what each answered, by rank.

        Raises:
            ShardedModuleError: a rank raised or died; the message says which and why. All ranks are ended then.
        """
        if not self.close.alive:
            raise ShardedModuleError(f"the ranks of this module were ended: {self._why}; build it again")
        try:
            for link in self._links:
                _send(link, kind, content)
            return [self._answer(rank) for rank in range(self.tp_degree)]
        except BaseException as error:
            self._why = (str(error).splitlines() or [type(error).__name__])[0]
            self.close()
            raise

    def __enter__(self) -> ShardedModule:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _connect(self) -> None:
        """Start the ranks and wait until each has built its module."""
        address = str(self.folder / "s")
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(address)
            server.listen(self.tp_degree)
            server.settimeout(0.05)
            self._running = self._launcher.start(
                address,
                size=self.tp_degree,
                work_dir=self.folder,
                log_dir=self.folder / "logs",
                timeout=None,
            )
            links: dict[int, socket.socket] = {}
            while len(links) < self.tp_degree:
                try:
                    link = server.accept()[0]
                except TimeoutError:
                    self._check_running(self._running)
                    continue
                self._links.append(link)
                link.setblocking(True)
                links[struct.unpack("<Q", _receive(link, 8))[0]] = link
        self._links[:] = [links[rank] for rank in range(self.tp_degree)]
        for rank in range(self.tp_degree):
            self._answer(rank)

    def _answer(self, rank: int) -> bytes:
        try:
            kind, length = _HEADER.unpack(_receive(self._links[rank], _HEADER.size))
            content = _receive(self._links[rank], length)
        except (ConnectionError, OSError):
            outcome = self._running.wait()
            raise self._error(outcome.message, outcome.traceback) from None
        if kind == ERROR:
            summary, trace = json.loads(content)
            if trace is None:  # the user's own mistake, which the sentence says
                raise UsageError(summary)
            raise self._error(f"rank {rank} of {self.tp_degree} failed: {summary}", trace)
        if kind == NOTE:
            self.note = content.decode()
            return self._answer(rank)
        return content

    def _check_running(self, running: RunningRanks) -> None:
        outcome = running.poll()
        if outcome is not None:
            raise self._error(outcome.message, outcome.traceback)

    def _error(self, message: str, trace: str | None) -> ShardedModuleError:
        """With the remedy that the ranks' logs call for, which go with the ranks."""
        logs = {rank: read_log(rank_log(self.folder / "logs", rank)) for rank in range(self.tp_degree)}
        remedy = advice(logs, hung=False)
        first = f"{message}; {remedy}" if remedy else message
        return ShardedModuleError(f"{first}\n{trace}" if trace else first)

    def _join(self, shards: list[torch.Tensor]) -> torch.Tensor:
        try:
            return self.output.join(shards)
        except ReplicaError as error:
            raise ReplicaError(
                error.ranks,
                error.index,
                error.actual,
                error.expected,
                "the ranks' outputs must agree; if each rank returns its shard, say so on the module class: "
                "output_placement = Shard(-1)",
            ) from None


def serve_rank(make: MakeModule, address: str, rank: int, size: int) -> None:
    """What a rank executes: build the module, then answer calls until the other end is closed."""
    group = TorchGroup()
    with socket.socket(socket.AF_UNIX) as link, use_group(group), torch.no_grad():
        link.connect(address)
        link.sendall(struct.pack("<Q", rank))
        made: Made | None = None
        while True:
            try:
                if made is None:
                    made, answer = make(group), b""
                    made.module.eval()
                    if made.note and rank == 0:
                        _send(link, NOTE, made.note.encode())
                else:
                    kind, content = _take(link)
                    answer = made.exactly(content) if kind == EXACTLY else _called(made.module, content)
            except EOFError:
                return
            except Exception as error:  # the caller gets the text, whatever the module did
                wrong = (str(error), None) if isinstance(error, UsageError) else _told(error)
                _send(link, ERROR, json.dumps(wrong).encode())
                raise
            _send(link, TENSORS, answer)


def _called(module: nn.Module, inputs: bytes) -> bytes:
    tensors = load(inputs)
    outputs = results_in(module(*(tensors[str(i)] for i in range(len(tensors)))))
    return save({str(i): x.clone().contiguous() for i, (_, x) in enumerate(outputs)})


def _told(error: Exception) -> tuple[str, str]:
    return f"{type(error).__name__}: {error}", "".join(traceback.format_exception(error))


def _take(link: socket.socket) -> tuple[bytes, bytes]:
    """The kind of the next message, and the message.

    Raises:
        EOFError: there will be none.
    """
    try:
        kind, length = _HEADER.unpack(_receive(link, _HEADER.size))
    except ConnectionError:
        raise EOFError from None
    return kind, _receive(link, length)


def _send(link: socket.socket, kind: bytes, content: bytes) -> None:
    link.sendall(_HEADER.pack(kind, len(content)) + content)


def _receive(link: socket.socket, length: int) -> bytes:
    content = bytearray()
    while len(content) < length:
        piece = link.recv(min(1 << 20, length - len(content)))
        if not piece:
            raise ConnectionError("the other end was closed")
        content += piece
    return bytes(content)


def _close(launcher: RankLauncher, links: list[socket.socket], folder: WorkFolder) -> None:
    for link in links:
        with contextlib.suppress(OSError):
            link.close()
    launcher.close()
    folder.remove()
