"""Ranks as processes under torch's elastic agent, forked from this one; collectives by gloo."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import torch

from ..group import TorchGroup
from ..launch import RankLauncher, RunningRanks
from ..rank import run_job


class GlooBackend:
    """The default without Neuron devices."""

    name = "gloo"
    blind_spots = "gloo cannot see a rank folded into a compiled graph, nor device arithmetic"

    def available(self) -> str | None:
        """None where torch has gloo, which every Linux and macOS build does."""
        if torch.distributed.is_available() and torch.distributed.is_gloo_available():
            return None
        return "this build of torch has no gloo"

    def open(self) -> GlooSession:
        """Fork the process from which ranks descend."""
        return GlooSession()


class GlooSession:
    """A launcher whose ranks run job files."""

    def __init__(self) -> None:
        self._launcher = RankLauncher.fork(rank_entry)

    def start(self, job: Path, *, tp: int, log_dir: Path, timeout: float) -> RunningRanks:
        """Start `tp` ranks on the job file, whose folder is also the run's working folder."""
        return self._launcher.start(str(job), size=tp, work_dir=job.parent, log_dir=log_dir, timeout=timeout)

    def __enter__(self) -> GlooSession:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._launcher.close()


def rank_entry(argument: str, rank: int, size: int) -> None:
    """What a rank executes once the default process group stands."""
    group = TorchGroup()
    if (group.rank, group.size) != (rank, size):
        raise RuntimeError(f"launched as rank {rank} of {size}, but the group says {group.rank} of {group.size}")
    run_job(Path(argument), group, core=f"cpu process {rank}")
