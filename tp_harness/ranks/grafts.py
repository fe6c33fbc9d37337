"""Right values in the place of tapped tensors (grafts): a rank goes on as if everything before them were right.

Not covered: a choice of experts, which the lock of the routers puts right in every run.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ..case.case import Case
from ..errors import doing
from ..parallel import dtensors
from ..parallel.group import Group
from ..parallel.placements import Partial, Placement, Replicate


def right_shard(placement: Placement, full: torch.Tensor, rank: int, size: int) -> torch.Tensor:
    """A rank's part of a right tensor, any shape and dtype.

    Of a sum over ranks, element i (in row order) lies on rank i modulo `size`, and the others hold -0.0 there: exact
    in every dtype, and wrong for any reduction but the sum of each rank once.

    Raises:
        PlacementError: the placement cannot cut it.
    """
    if not isinstance(placement, Partial):
        return placement.shard(full, rank, size)
    own = torch.arange(full.numel()).remainder(size).view(full.shape) == rank
    return torch.where(own, full, torch.full_like(full, -0.0))


def write_right(path: Path, taps: Mapping[str, torch.Tensor]) -> None:
    """Write full right tensors of any shape and dtype by tap name, as a safetensors file, for `Grafts`."""
    save_file({name: tensor.detach().clone().contiguous() for name, tensor in taps.items()}, path)


class Grafts:
    """What a rank gives in the place of some tapped tensors in one forward.

    Args:
        path: the file that `write_right` wrote; read when a tensor is needed.
        names: of the taps whose value is replaced.
        case: places the taps; those it does not place are replicated.
        group: the rank's.
    """

    def __init__(self, path: Path, names: Collection[str], case: Case, group: Group) -> None:
        self.path, self.names, self.case, self.group = path, names, case, group
        self._left: dict[str, torch.Tensor] = {}  # what further calls of the same submodule are given

    def __call__(self, name: str, own: torch.Tensor) -> torch.Tensor:
        """The right value in the form, shape and dtype of `own`; `own` where it is not replaced, or does not fit."""
        if name not in self.names:
            return own
        placement = dtensors.placement_of(name, own) or self.case.taps.get(name, Replicate())
        local, right = dtensors.local(own), self._left.get(name)
        if right is None:
            right = self._shard(name, placement)
        if right.numel() < local.numel() or right.shape[-1:] != local.shape[-1:]:
            return own
        self._left[name] = right.reshape(-1)[local.numel() :].reshape(-1, *right.shape[-1:])
        given = right.reshape(-1)[: local.numel()].view(local.shape)
        return dtensors.as_placed(given.to(device=local.device, dtype=local.dtype, copy=True), own)

    def _shard(self, name: str, placement: Placement) -> torch.Tensor:
        with safe_open(self.path, framework="pt") as file:
            full = file.get_tensor(name)
        with doing(f"shard of {placement}, called for the tap {name}"):
            return right_shard(placement, full, self.group.rank, self.group.size)
