"""A rank's module with its shards of the weights loaded, and the identity of the bits that it holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import nn

from ..arithmetic.casts import cast
from ..arithmetic.exact import Exact
from ..arithmetic.floats import Floats, nominal
from ..arithmetic.residues.field import Field
from ..case.case import Case
from ..case.plan import check_names, check_submodules, planned
from ..case.state_dict import load_weights, weights_of
from ..case.tried_placements import local_placement
from ..checkpoint.checkpoint import Checkpoint
from ..config.dtypes import EXACT
from ..errors import doing
from ..parallel import dtensors
from ..parallel.group import Group
from ..parallel.placements import Placement, same_bits
from .job import Job, Task
from .rank_files import digest
from .rank_report import Held


def build(
    case: Case, checkpoint: Checkpoint, arithmetic: Floats | Exact, group: Group, tied: Mapping[str, str]
) -> tuple[nn.Module, dict[str, Held]]:
    """Build this rank's module, and load its shard of each tensor of the checkpoint.

    Args:
        case: the case that is run.
        checkpoint: full tensors, of any shape and in the stored dtype, under the case's prefix.
        arithmetic: of the run; floating-point parameters are cast to its dtype, but a family's keep the stored ones.
        group: this rank's.
        tied: of a name in the checkpoint, that of the parameter it is tied to.

    Returns:
        The module in the case's mode, and by name what the rank holds of each parameter and buffer.

    Raises:
        PlanError: a parameter whose placement the plan does not say, or whose shard has another shape.
    """
    side = f"the sharded module of {case.name}"
    with doing(f"sharded of {case.name}, called without arguments"):
        module = case.make(case.sharded, arithmetic.dtype)
    local = weights_of(module, side)
    renaming = check_names(case, local, {name: checkpoint.shape(name) for name in checkpoint.names}, group.size)
    check_submodules(case, "sharded module", module)
    case = replace(case, plan=planned(case, local, group.size))
    stored = {
        key: arithmetic.draw(tied.get(key, key), checkpoint.tensor(key))
        for key in dict.fromkeys(key for name in local for key in renaming.keys(name))
    }
    with arithmetic.computing():
        full = {name: renaming.tensor(name, stored.__getitem__) for name in local}
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers() if name in full}
    with arithmetic.computing():
        load_weights(module, _shards(case, full, local, group), side, assign=case.on_meta)
    read = {name: dtensors.placement_of(name, tensor) for name, tensor in local.items()}
    held = {
        name: _held(tensor, full[name], read[name], arithmetic) for name, tensor in weights_of(module, side).items()
    }
    for name, buffer in buffers.items():
        same = same_bits(dtensors.local(buffer), arithmetic.plain(dtensors.local(module.get_buffer(name))))
        held[name] = replace(held[name], rebuilt=same)
    with arithmetic.computing(), doing(f"edit of {case.name}"):
        module = (module if case.on_meta else cast(module, arithmetic.dtype)).train(case.training)
        case.edit(module, group)
    return module, held


def _shards(
    case: Case, full: Mapping[str, torch.Tensor], local: Mapping[str, torch.Tensor], group: Group
) -> dict[str, torch.Tensor]:
    """This rank's shard of each full tensor, a DTensor where the module's own is one."""
    shards: dict[str, torch.Tensor] = {}
    for name, tensor in full.items():
        own = dtensors.local(local[name])
        placement = local_placement(case, name, tensor.shape, own.shape, group.size, rank=group.rank)
        with doing(f"shard of {placement}, called for {name}"):
            shards[name] = dtensors.as_placed(placement.shard(tensor, group.rank, group.size), local[name])
    return shards


def _held(loaded: torch.Tensor, full: torch.Tensor, placement: Placement | None, arithmetic: Floats | Exact) -> Held:
    """What the rank holds of the tensor `full` of the mapped checkpoint, and its placement if it is a DTensor."""
    tensor = dtensors.local(loaded)
    mapped = tensor.untyped_storage().data_ptr() == full.untyped_storage().data_ptr() and tensor.numel() > 0
    return Held(
        shape=tuple(tensor.shape),
        dtype=str(tensor.dtype).removeprefix("torch."),
        bytes=tensor.numel() * tensor.element_size(),
        view=(int(tensor.storage_offset()), *tensor.stride()) if mapped else None,
        digest="" if mapped else digest(arithmetic.plain(tensor)),
        placed=dtensors.Placed.of(placement) if placement else None,
    )


def arithmetic_of(job: Job, task: Task, dtype: str) -> Floats | Exact:
    """The arithmetic of a run; ranks that are threads of one process share the memory of an exact one."""
    if dtype != EXACT:
        return Floats(nominal(dtype))
    return Exact(_field(job.field_path(task)), shared=str(job.output_path(task, 0)))


@lru_cache(maxsize=4)
def _field(path: Path) -> Field:
    return Field.read(path)
