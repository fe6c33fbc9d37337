"""Padding that a rank holds, filled with other numbers than zeros: the outputs must not change.

A loader writes zeros, and with zeros a module may be right by chance: a padded row of an unembedding gives the logit 0,
which an argmax takes where all others are negative. So a module is built again with numbers in the padding of one
parameter (that of all layers together), everything else as before, and is run once more.

Not covered: padding of integers, booleans and complex numbers, which stays zero.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from glob import escape
from typing import Any

import torch

from ..case.case import Case
from ..case.placed import input_placements
from ..case.seeds import generator
from ..checkpoint.checkpoint import Checkpoint
from ..config.dtypes import EXACT
from ..parallel.group import Group
from ..parallel.placements import Placement
from ..parallel.same_bits import bits_of
from ..results.tensor_names import INPUT, call_of, of_call, without_call
from .job import Job, Task
from .rank_files import Kept, as_pairs, put_aside
from .rank_inputs import read_inputs
from .rank_report import DtypeRun


@dataclass(frozen=True)
class Filled(Placement):
    """A placement with random numbers of order one instead of zeros where its shards are padding."""

    placement: Placement
    name: str

    def shard(self, full: torch.Tensor, rank: int, size: int) -> torch.Tensor:
        """The shard, of any shape, with its padding filled; the same in every process."""
        shard, padding = self.placement.shard(full, rank, size), self.padding(full.shape, rank, size)
        if padding is None or not padding.any():
            return shard
        drawn = torch.randn(shard.shape, generator=generator(0, f"{self.name} {rank}"))
        numbers = (drawn + drawn.sign()).to(shard.dtype)  # none is near 0
        filled, where = shard.clone(), padding.expand(shard.shape)
        bits_of(filled)[where] = bits_of(numbers)[where]
        return filled

    def join(self, shards: Sequence[torch.Tensor]) -> torch.Tensor:
        """The full tensor, in its shape, as the placement joins it."""
        return self.placement.join(shards)

    def padding(self, shape: Sequence[int], rank: int, size: int) -> torch.Tensor | None:
        """As that of the placement, for full tensors of any shape."""
        return self.placement.padding(shape, rank, size)


def with_filled_runs(
    runner: Callable[..., Any], job: Job, task: Task, dtype: str, *, group: Group, checkpoint: Checkpoint
) -> tuple[Kept, DtypeRun]:
    """Run a task; and the first draw, in floating-point numbers, once more for each of its `paddings`.

    Args:
        runner: (change of its case) -> a DtypeRunner of the task.
        job: of the task.
        task: what is run.
        dtype: the run's.
        group: this rank's.
        checkpoint: full tensors, of any shape.

    Returns:
        The tensors of all these runs by key, and the report on the first, as `DtypeRunner.run`.
    """
    kept, run = runner().run()
    if dtype == EXACT or task.draw or task.fault or job.taps:
        return kept, run
    changes = paddings(job, task, dtype, group.size, checkpoint)
    for name, change in changes.items():
        again = runner(change=change)
        tensors = again.device.run(again.locked)[0]
        outputs, pairs = as_pairs({key.filled(name): x for key, x in tensors.items() if key.name in again.results})
        kept |= put_aside(job.output_path(task, group.rank), outputs)
        run = replace(run, pairs=run.pairs + pairs)
    return kept, replace(run, filled=tuple(changes))


def paddings(job: Job, task: Task, dtype: str, size: int, checkpoint: Checkpoint) -> dict[str, Callable[[Case], Case]]:
    """What is padded on some of `size` ranks, and has to be inert; the other arguments are those of `with_filled_runs`.

    Returns:
        By a name for it, how a case fills it: parameters whose names differ in numbers only, or one input ("input.0").
    """
    case, parameters = job.subject.case(task, dtype=dtype, tp=size), dict[str, dict[str, Placement]]()
    renaming = case.renaming(checkpoint.names)
    for name, placement in case.plan.items():
        if _fillable(placement, renaming.tensor(name, checkpoint.tensor), size):
            kind = re.sub(r"(?<![^.])\d+(?![^.])", "*", name)
            parameters.setdefault(kind, {})[name] = Filled(placement, name)
    inputs = read_inputs(job.inputs_path(task)).inputs if case.input_placements else {}
    placed = input_placements(case, inputs)
    filled = [name for name, x in inputs.items() if _fillable(placed[name], x, size)]
    found: dict[str, Callable[[Case], Case]] = {kind: partial(_of_plan, own) for kind, own in parameters.items()}
    return found | {name: partial(_of_inputs, {**placed, name: Filled(placed[name], name)}) for name in filled}


def _of_plan(placements: Mapping[str, Placement], case: Case) -> Case:
    return replace(case, plan={**case.plan, **placements})


def _of_inputs(placements: Mapping[str, Placement], case: Case) -> Case:
    """The case with these placements of all inputs, by their names ("input.0", "decode/input.mask")."""
    paths = {name: of_call(call_of(name), without_call(name).removeprefix(INPUT)) for name in placements}
    return replace(case, input_placements={escape(paths[name]): placements[name] for name in placements})


def _fillable(placement: Placement, full: torch.Tensor, size: int) -> bool:
    masks = (placement.padding(full.shape, rank, size) for rank in range(size))
    return full.is_floating_point() and placement.inert and any(mask is not None and mask.any() for mask in masks)
