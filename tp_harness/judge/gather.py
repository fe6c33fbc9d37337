"""Reading what the ranks of one task left, and joining their outputs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..case.case import Case
from ..errors import doing
from ..parallel.placements import KVHeads, Placement, ReplicaError
from ..ranks import rank_files
from ..ranks.job import Job, Task
from ..results.from_json import from_json
from ..results.result import Collective, Forwards, RankRecord


@dataclass(frozen=True, kw_only=True)
class RankOutput:
    """One rank's tensors by name (`float32.locked.output.0`, ...) and the facts it recorded."""

    tensors: Mapping[str, torch.Tensor]
    facts: Mapping[str, Any]

    def collectives(self, dtype: str) -> tuple[Collective, ...]:
        """The calls of one dtype, in order."""
        return tuple(from_json(Collective, call) for call in self.facts[dtype]["collectives"])

    def record(self, dtype: str) -> RankRecord:
        """What goes into run.json."""
        facts = self.facts[dtype]
        held = facts["parameters"].values()
        return RankRecord(
            rank=self.facts["rank"],
            core=self.facts["core"],
            wall_s=round(self.facts["wall_s"], 4),
            cpu_s=round(self.facts["cpu_s"], 4),
            peak_bytes=facts["peak_bytes"],
            weight_bytes=sum(parameter["bytes"] for parameter in held),
            collectives=self.collectives(dtype),
            begin_bytes=facts["begin_bytes"],
            forwards=from_json(Forwards, facts["forwards"]),
            flops=facts["flops"],
        )


class Awaited:
    """The ranks' files of some tasks that were not there yet; made to be asked often, and so without `Path`."""

    def __init__(self, job: Job, tasks: Iterable[Task]) -> None:
        self._paths = [str(job.output_path(task, rank)) for task in tasks for rank in range(job.tp)]

    def all_there(self) -> bool:
        """Whether every file is there (a file appears only when it is whole)."""
        while self._paths and os.path.exists(self._paths[-1]):
            self._paths.pop()
        return not self._paths


def read_outputs(job: Job, task: Task) -> dict[int, RankOutput]:
    """The outputs of the ranks whose file is there, by rank."""
    paths = {rank: job.output_path(task, rank) for rank in range(job.tp)}
    found, large = {}, dict[str, torch.Tensor]()
    for rank, path in paths.items():
        if path.exists():
            tensors, facts = rank_files.read_output(path, large)
            found[rank] = RankOutput(tensors=tensors, facts=facts)
    return found


def remove_outputs(job: Job, task: Task) -> None:
    """Delete a task's files once they have been judged."""
    rank_files.remove_outputs(job.output_path(task, rank) for rank in range(job.tp))


@dataclass(frozen=True, kw_only=True)
class Joined:
    """An output of all ranks as one tensor; `drift` says which rank differed where all must agree."""

    full: torch.Tensor
    drift: ReplicaError | None


def join(placement: Placement, shards: list[torch.Tensor]) -> Joined:
    """Join the ranks' parts; where replicas differ, the first copy of each stands for all."""
    try:
        with doing(f"join of {placement}, called with {len(shards)} outputs of shape {list(shards[0].shape)},"):
            return Joined(full=placement.join(shards), drift=None)
    except ReplicaError as error:
        size = len(shards)
        copies = placement.replicas(size) if isinstance(placement, KVHeads) else size
        return Joined(full=placement.join([shards[r // copies * copies] for r in range(size)]), drift=error)


def output_names(case: Case) -> tuple[str, ...]:
    """The tensor names of a case's outputs."""
    return tuple(f"output.{i}" for i in range(len(case.outputs)))


def router_names(case: Case) -> tuple[str, ...]:
    """The names of what a case's routers must leave: logits [tokens, experts] and choice [tokens, k] of each."""
    return tuple(tap for router in case.routers for tap in router.shown)
