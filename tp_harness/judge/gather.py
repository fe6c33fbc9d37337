"""Reading the files of a task's ranks, and joining their outputs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from ..case.case import Case
from ..errors import doing
from ..parallel.on_mesh import owners
from ..parallel.placements import Placement, ReplicaError
from ..ranks import rank_files
from ..ranks.job import Job, Task
from ..ranks.rank_report import RankReport, TensorKey


@dataclass(frozen=True, kw_only=True)
class RankOutput:
    """The tensors and the report of one rank."""

    tensors: Mapping[TensorKey, torch.Tensor]
    report: RankReport


class Awaited:
    """The files that the ranks of some tasks have not written yet; polled often, and so without `Path`."""

    def __init__(self, job: Job, tasks: Iterable[Task]) -> None:
        self._paths = [str(job.output_path(task, rank)) for task in tasks for rank in range(job.tp)]

    def all_there(self) -> bool:
        """Whether every file exists (a file appears only when it is complete)."""
        while self._paths and os.path.exists(self._paths[-1]):
            self._paths.pop()
        return not self._paths


def read_outputs(job: Job, task: Task) -> dict[int, RankOutput]:
    """By rank, the tensors (shapes and dtypes as written) and report of each rank whose file exists."""
    paths = {rank: job.output_path(task, rank) for rank in range(job.tp)}
    found, large = {}, dict[str, torch.Tensor]()
    for rank, path in paths.items():
        if path.exists():
            tensors, report = rank_files.read_output(path, large)
            found[rank] = RankOutput(tensors=tensors, report=report)
    return found


def remove_outputs(job: Job, task: Task) -> None:
    """Delete the files of a task's ranks, after the verdict."""
    rank_files.remove_outputs(job.output_path(task, rank) for rank in range(job.tp))


@dataclass(frozen=True, kw_only=True)
class Joined:
    """An output of all ranks as one tensor; `drift` names the rank that differs where replicas must agree."""

    full: torch.Tensor
    drift: ReplicaError | None


def join(placement: Placement, shards: list[torch.Tensor]) -> Joined:
    """Join the ranks' parts of a tensor; where replicas differ, the first copy of each is taken.

    Args:
        placement: of the tensor.
        shards: in the order of ranks, of the shapes that the placement gives, any dtype.

    Returns:
        The full tensor in the shards' dtype, and the first replicas that differ.
    """
    try:
        with doing(f"join of {placement}, called with {len(shards)} outputs of shape {list(shards[0].shape)},"):
            return Joined(full=placement.join(shards), drift=None)
    except ReplicaError as error:
        first = owners(placement, len(shards)) or [0] * len(shards)
        return Joined(full=placement.join([shards[rank] for rank in first]), drift=error)


def router_names(case: Case) -> tuple[str, ...]:
    """The names of the tensors of a case's routers: logits (tokens, experts) and choice (tokens, k) of each."""
    return tuple(tap for router in case.routers for tap in router.shown)
