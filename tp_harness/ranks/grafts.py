"""Right values in the place of tapped tensors (grafts): a rank goes on as if everything before them were right.

Not covered: a choice of experts, which the lock of its router puts right.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from itertools import count, takewhile
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ..arithmetic.exact import Exact
from ..arithmetic.floats import Floats
from ..case.case import Case
from ..errors import doing
from ..libraries.torch_private import without_function_modes, without_modes
from ..parallel import dtensors
from ..parallel.group import Group
from ..parallel.on_mesh import OnMesh
from ..parallel.placements import Partial, Placement, Replicate
from ..results.tensor_names import without_call
from .rank_report import modulo


def right_shard(placement: Placement, full: torch.Tensor, rank: int, size: int) -> torch.Tensor:
    """A rank's part of a right tensor, any shape and dtype.

    Of a sum over ranks, element i (in row order) lies on rank i modulo `size`, and the others hold -0.0 there: exact
    in every dtype, and of residues too, and wrong for any reduction but the sum of each rank once.

    Raises:
        PlacementError: the placement cannot cut it.
    """
    if isinstance(placement, OnMesh):
        for along, number, count in placement.steps(rank):
            full = right_shard(along, full, number, count)
        return full
    if not isinstance(placement, Partial):
        return placement.shard(full, rank, size)
    own = torch.arange(full.numel()).remainder(size).view(full.shape) == rank
    return torch.where(own, full, torch.full_like(full, -0.0))


def write_right(path: Path, taps: Mapping[str, torch.Tensor]) -> None:
    """Write full right tensors of any shape and dtype by tap name, as a safetensors file, for `Grafts`.

    Those of exact arithmetic are shadows; their residues are there under the names that `modulo` gives.
    """
    save_file({name: tensor.detach().clone().contiguous() for name, tensor in taps.items()}, path)


class Grafts:
    """What a rank gives in the place of some tapped tensors in one forward.

    Args:
        path: the file that `write_right` wrote; read when a tensor is needed.
        names: of the taps whose value is replaced.
        case: places the taps; those it does not place are replicated.
        group: the rank's.
        arithmetic: of the run.
    """

    def __init__(
        self, path: Path, names: Collection[str], case: Case, group: Group, arithmetic: Floats | Exact
    ) -> None:
        self.path, self.names, self.case, self.group, self.arithmetic = path, names, case, group, arithmetic
        self._left: dict[str, list[torch.Tensor]] = {}  # what further calls of the same submodule are given

    def __call__(self, name: str, own: torch.Tensor) -> torch.Tensor:
        """The right value in the form, shape and dtype of `own`; `own` where it is not replaced, or does not fit."""
        if name not in self.names:
            return own
        placement = dtensors.placement_of(name, own) or self.case.taps.get(without_call(name), Replicate())
        local = dtensors.local(own)
        with without_modes(), without_function_modes():  # that is no work of the module's
            given = self._next(name, placement, local)
        return own if given is None else dtensors.as_placed(given, own)

    def _next(self, name: str, placement: Placement, local: torch.Tensor) -> torch.Tensor | None:
        """As many of the right elements as `local` has, after those that earlier calls were given."""
        right = self._left.get(name) or self._shard(name, placement)
        if not local.numel() or right[0].numel() < local.numel() or right[0].shape[-1:] != local.shape[-1:]:
            return None
        self._left[name] = [x.reshape(-1)[local.numel() :].reshape(-1, *x.shape[-1:]) for x in right]
        shadow, *residues = (x.reshape(-1)[: local.numel()].view(local.shape) for x in right)
        given = self.arithmetic.joined(shadow, residues if local.is_floating_point() else (), local.dtype)
        return given.to(local.device)

    def _shard(self, name: str, placement: Placement) -> list[torch.Tensor]:
        """The rank's part of the right tensor, and those of its residues."""
        with safe_open(self.path, framework="pt") as file:
            written = set(file.keys())
            residues = takewhile(written.__contains__, map(partial(modulo, name), count()))
            full = [file.get_tensor(key) for key in (name, *residues)]
        with doing(f"shard of {placement}, called for the tap {name}"):
            return [right_shard(placement, x, self.group.rank, self.group.size) for x in full]
