"""Faults for the launcher, and how they get into a run: hooks in its code, set before it forks anything."""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from tp_harness.launch import rank as launch_rank

from tp_harness.judge import gather
from tp_harness.models.gpt_oss.modules.mlp import NeuronGPTOSSMLPBlock
from tp_harness.ranks import rank as rank_module
from tp_harness.verification import degrees

MOMENTS = ("start", "rendezvous", "forward", "collective", "gather", "write")
DEGREES = (2, 8, 32)


@dataclass(frozen=True)
class Fault:
    """What strikes, when, at which degree."""

    kind: str
    moment: str
    tp: int

    @property
    def victim(self) -> int:
        """The rank that it strikes."""
        return self.tp - 1

    @property
    def hangs(self) -> bool:
        """It ends nothing by itself; only the timeout does."""
        return self.kind in ("SIGSTOP", "sleep")

    @property
    def strikes_main(self) -> bool:
        """It is the main process, and not a rank, that it strikes."""
        return self.kind in MAIN_KINDS

    @property
    def persists(self) -> bool:
        """It strikes at every start of the ranks; one that does not is healed by the second start."""
        return self.moment in ("start", "rendezvous") and not self.strikes_main


def exhaust() -> None:
    """Ask for more memory than this process may have."""
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + (64 << 20), taken + (64 << 20)))
    torch.ones(1 << 30)


def fail(error: BaseException) -> NoReturn:
    """Raise it."""
    raise error


def kill(number: signal.Signals) -> Callable[[], object]:
    """Send oneself a signal."""
    return lambda: os.kill(os.getpid(), number)


RANK_KINDS: dict[str, Callable[[], object]] = {
    "raise": lambda: fail(ArithmeticError("no more numbers")),
    "MemoryError": lambda: fail(MemoryError()),
    "allocation": exhaust,
    "sys.exit(5)": lambda: sys.exit(5),
    "os._exit(0)": lambda: os._exit(0),
    "SIGTERM": kill(signal.SIGTERM),
    "SIGSEGV": kill(signal.SIGSEGV),
    "SIGKILL": kill(signal.SIGKILL),
    "SIGSTOP": kill(signal.SIGSTOP),
    "sleep": lambda: time.sleep(3600),
}
MAIN_KINDS: dict[str, tuple[signal.Signals, ...]] = {
    "main: SIGINT twice": (signal.SIGINT, signal.SIGINT),
    "main: SIGTERM": (signal.SIGTERM,),
    "main: SIGKILL": (signal.SIGKILL,),
}
WRITE_KINDS = ("disk full", "folder gone")  # of the main process, while it writes run.json
ALL = [
    *(Fault(k, m, tp) for k in (*RANK_KINDS, *MAIN_KINDS) for m in MOMENTS for tp in DEGREES),
    *(Fault(k, "write", tp) for k in WRITE_KINDS for tp in DEGREES),
]


class Injection:
    """Hooks in the code of the run, set in the main process before it forks anything."""

    def __init__(self, fault: Fault, home: Path) -> None:
        self.fault, self.home, self.main = fault, home, os.getpid()
        self.armed = False  # in a rank: the fault has yet to strike in this start

    def install(self) -> None:
        """Set the hooks that the fault's moment needs."""
        self.at_start()
        hooks = {"gather": self.at_gather, "write": self.at_write}
        if self.fault.moment in hooks:
            hooks[self.fault.moment]()
        NeuronGPTOSSMLPBlock.forward = self.around(NeuronGPTOSSMLPBlock.forward)  # type: ignore[method-assign]

    def strike(self) -> None:
        """The fault itself, in the process that it strikes or, for a signal to the main process, in the victim."""
        struck = self.home / "struck"
        if struck.exists() and not self.fault.persists:
            return
        if not struck.exists():
            (self.home / "struck.part").write_text(repr(time.time()))
            (self.home / "struck.part").rename(struck)
        if self.fault.strikes_main:
            for number in MAIN_KINDS[self.fault.kind]:
                os.kill(self.main, number)
                time.sleep(0.05)
            if os.getpid() != self.main:
                time.sleep(1)  # until its death is ours
        else:
            RANK_KINDS[self.fault.kind]()

    def is_victim(self, rank: int, size: int) -> bool:
        """This rank is struck."""
        return (rank, size) == (self.fault.victim, self.fault.tp)

    def at_start(self) -> None:
        """Before the victim joins the group, or when it has and the others may not have."""
        join = launch_rank._join_group

        def joined(task: launch_rank.RankTask, rank: int) -> None:
            self.armed = not (self.home / "struck").exists()  # the same in all: none has begun
            if self.fault.moment == "start" and self.is_victim(rank, task.size):
                self.strike()
            join(task, rank)
            if self.fault.moment == "rendezvous" and self.is_victim(rank, task.size):
                self.strike()

        launch_rank._join_group = joined

    def around(self, forward: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        """The MLP's forward with the fault in it: before all, or in a collective that has begun and cannot end."""

        def faulty(module: Any, x: torch.Tensor) -> torch.Tensor:
            rank, size = module.group.rank, module.group.size
            moment = self.fault.moment
            if moment == "write" and not self.strikes_itself() and self.is_victim(rank, size):
                self.await_file("writing")
            if moment in ("forward", "write") and not self.strikes_itself() and self.is_victim(rank, size):
                self.strike()
            if moment == "collective" and size == self.fault.tp and self.armed:
                if rank == 0:
                    time.sleep(0.3)  # the others wait inside
                work = dist.all_reduce(torch.ones(64), async_op=True)
                if self.is_victim(rank, size):
                    self.strike()
                work.wait()
            return forward(module, x)

        return faulty

    def strikes_itself(self) -> bool:
        """It happens in the main process, by itself."""
        return self.fault.moment == "write" and (self.fault.strikes_main or self.fault.kind in WRITE_KINDS)

    def at_gather(self) -> None:
        """While the victim hands its outputs over, or while the main process reads those of all."""
        if self.fault.strikes_main:
            read = gather.read_outputs

            def reading(job: Any, task: Any) -> Any:
                if (task.component, job.tp) == ("mlp", self.fault.tp):
                    self.strike()
                return read(job, task)

            degrees.read_outputs = reading  # type: ignore[attr-defined]
            return
        write = rank_module.write_output

        def writing(path: Path, kept: Any, report: Any) -> None:
            if path.name.startswith("mlp.") and self.is_victim(report.rank, _degree(path)):
                path.with_suffix(".part").write_bytes(b"half")
                self.strike()
            write(path, kept, report)

        rank_module.write_output = writing

    def at_write(self) -> None:
        """While the main process writes the first result of the degree into run.json."""
        replace = Path.replace

        def replacing(path: Path, target: Path) -> Path:
            at_degree = path.name == "run.json.part" and f'"tp": {self.fault.tp}' in path.read_text()
            if at_degree and not (self.home / "writing").exists():
                (self.home / "writing").touch()
                if self.strikes_itself():
                    self.strike_write(path)
                else:
                    self.await_file("struck")
            return replace(path, target)

        Path.replace = replacing  # type: ignore[method-assign, assignment]

    def strike_write(self, path: Path) -> None:
        """The main process cannot write, or is struck while it does."""
        if self.fault.strikes_main:
            self.strike()
            return
        (self.home / "struck").write_text(repr(time.time()))
        if self.fault.kind == "disk full":
            raise OSError(28, os.strerror(28), str(path))
        path.parent.rename(path.parent.with_name("moved"))

    def await_file(self, name: str) -> None:
        """Until another process has made it."""
        end = time.monotonic() + 30
        while not (self.home / name).exists() and time.monotonic() < end:
            time.sleep(0.005)


def _degree(path: Path) -> int:
    return next(int(part[2:]) for part in path.name.split(".") if part[:2] == "tp" and part[2:].isdigit())
