"""A rank's module with its shards of the weights loaded, and the identity of the bits that it holds."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from ..arithmetic.casts import cast
from ..case.case import Case
from ..case.plan import check_names, check_submodules, local_placement, planned
from ..case.state_dict import load_weights, weights_of
from ..checkpoint.checkpoint import Checkpoint
from ..errors import doing
from ..parallel import dtensors
from ..parallel.group import Group
from ..parallel.placements import Placement, same_bits
from .rank_files import digest
from .rank_report import Held


def build(case: Case, checkpoint: Checkpoint, dtype: torch.dtype, group: Group) -> tuple[nn.Module, dict[str, Held]]:
    """Build this rank's module, and load its shard of each tensor of the checkpoint.

    Args:
        case: the case that is run.
        checkpoint: full tensors, of any shape and in the stored dtype, under the case's prefix.
        dtype: that the module's floating-point parameters are cast to; a family's module keeps the stored dtypes.
        group: this rank's.

    Returns:
        The module in evaluation mode, and by name what the rank holds of each parameter and buffer.

    Raises:
        PlanError: a parameter whose placement the plan does not say, or whose shard has another shape.
    """
    side = f"the sharded module of {case.name}"
    with doing(f"sharded of {case.name}, called without arguments"):
        module = case.make(case.sharded, dtype)
    local = weights_of(module, side)
    check_names(case, local, checkpoint.names)
    check_submodules(case, "sharded module", module)
    case = replace(case, plan=planned(case, local, group.size))
    full = {name: checkpoint.tensor(case.prefix + name) for name in local}
    shards: dict[str, torch.Tensor] = {}
    for name, tensor in full.items():
        placement = local_placement(case, name, tensor.shape, dtensors.local(local[name]).shape, group.size)
        with doing(f"shard of {placement}, called for {name}"):
            shards[name] = dtensors.as_placed(placement.shard(tensor, group.rank, group.size), local[name])
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers() if name in shards}
    load_weights(module, shards, side, assign=case.on_meta)
    read = {name: dtensors.placement_of(name, tensor) for name, tensor in local.items()}
    held = {name: _held(tensor, full[name], read[name]) for name, tensor in weights_of(module, side).items()}
    for name, buffer in buffers.items():
        same = same_bits(dtensors.local(buffer), dtensors.local(module.get_buffer(name)))
        held[name] = replace(held[name], rebuilt=same)
    module = (module if case.on_meta else cast(module, dtype)).eval()
    with doing(f"edit of {case.name}"):
        case.edit(module, group)
    return module, held


def _held(loaded: torch.Tensor, full: torch.Tensor, placement: Placement | None) -> Held:
    """What the rank holds of the tensor `full` of the mapped checkpoint, and its placement if it is a DTensor."""
    tensor = dtensors.local(loaded)
    mapped = tensor.untyped_storage().data_ptr() == full.untyped_storage().data_ptr() and tensor.numel() > 0
    return Held(
        shape=tuple(tensor.shape),
        dtype=str(tensor.dtype).removeprefix("torch."),
        bytes=tensor.numel() * tensor.element_size(),
        view=(int(tensor.storage_offset()), *tensor.stride()) if mapped else None,
        digest="" if mapped else digest(tensor),
        placed=dtensors.Placed.of(placement) if placement else None,
    )
