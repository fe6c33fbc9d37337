"""Ranks as processes under torch's elastic agent, forked from this one; collectives by gloo."""

from __future__ import annotations

import ctypes
import os
from bdb import BdbQuit
from datetime import timedelta
from pathlib import Path
from types import TracebackType

import torch

from ..launch import RankLauncher, RunningRanks
from ..launch.rank import begin_step
from ..parallel.group import TorchGroup
from ..ranks.rank import run_job

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
LARGE_BLOCK = 1 << 20
NO_TERMINAL = (
    "breakpoint() found no terminal, which ranks of backend gloo do not have: use --backend local, whose ranks are "
    "threads of this process and take current_group() instead of torch.distributed"
)
A_YEAR = timedelta(days=365)
MIN_START, MAX_START = 10.0, 60.0  # seconds in which all ranks must be connected


class GlooBackend:
    """The default without Neuron devices; `unused` is why the devices of this machine are not used, if it has any."""

    name = "gloo"
    owns_terminal = False
    process_group = True
    weight_copies = 0

    def __init__(self, unused: str = "") -> None:
        self.blind_spots = "gloo cannot see a rank folded into a compiled graph, nor device arithmetic"
        if unused:
            self.blind_spots += f"; this machine's NeuronCores were not used: {unused}"

    def available(self) -> str | None:
        """None where torch has gloo, which every Linux and macOS build does."""
        if torch.distributed.is_available() and torch.distributed.is_gloo_available():
            return None
        return "this build of torch has no gloo"

    def open(self, degrees: tuple[int, ...] = ()) -> GlooSession:
        """Fork the process that forks the ranks; every degree can be run."""
        return GlooSession()


class GlooSession:
    """A session with a launcher, whose ranks run job files."""

    starts_anew = True

    def __init__(self) -> None:
        self._launcher = RankLauncher.fork(rank_entry)

    def start(self, job: Path, *, tp: int, log_dir: Path, timeout: float) -> RunningRanks:
        """Start `tp` ranks on the job file, each step within `timeout` seconds; they work in the job's folder."""
        return self._launcher.start(
            str(job),
            size=tp,
            work_dir=job.parent,
            log_dir=log_dir,
            timeout=timeout,
            start_timeout=min(MAX_START, max(MIN_START, timeout / 2)),  # of which there may be two
        )

    def __enter__(self) -> GlooSession:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._launcher.close()


def rank_entry(argument: str, rank: int, size: int) -> None:
    """Run the job file `argument` as `rank` of `size`, in the default process group.

    Raises:
        RuntimeError: the group has another rank or size, or a breakpoint() found no terminal.
    """
    save_memory()
    group = TorchGroup(timeout=A_YEAR)  # the run has a timeout of its own
    if (group.rank, group.size) != (rank, size):
        raise RuntimeError(f"launched as rank {rank} of {size}, but the group says {group.rank} of {group.size}")
    try:
        run_job(Path(argument), group, core=f"cpu process {rank}", begin=begin_step)
    except BdbQuit as error:  # a debugger raises it at the end of its input, and a rank has no input
        raise RuntimeError(NO_TERMINAL).with_traceback(error.__traceback__) from None


def save_memory() -> None:
    """Return freed memory to the system at once: 40 MB kept in each of 32 ranks are as much as the weights.

    oneDNN would cache a compiled primitive for every number of tokens that an expert gets, and hardly reuse one. glibc
    would raise its threshold for returning large blocks with each block that is freed.
    """
    os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = "0"
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's; other C libraries have none
    if mallopt:
        for option in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
            mallopt(option, LARGE_BLOCK)
