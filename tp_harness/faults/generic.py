"""Mistakes that any module with parameters can have: what the control of a user's case is made of."""

from __future__ import annotations

from typing import Any

import torch

from ..case import Case
from ..group import Group
from ..placements import Replicate
from .fault import Fault, always
from .ways import edits, put


def _spoilt(case: Case, spoil: Any) -> Case:
    """The last rank computes with a spoilt copy of a parameter: the first one that the plan shards, or the largest."""
    planned = [name for name, placement in case.plan.items() if not isinstance(placement, Replicate)]

    def edit(module: Any, group: Group) -> None:
        sizes = {name: parameter.numel() for name, parameter in module.named_parameters()}
        if group.rank == group.size - 1:
            name = next((name for name in planned if name in sizes), max(sizes, key=sizes.__getitem__, default=""))
            if name:
                put(module, name, spoil(module.get_parameter(name)))

    return edits(edit)(case)


def _rolled(x: torch.Tensor) -> torch.Tensor:
    return x.flatten().roll(1).view(x.shape)


FAULTS = (
    Fault(
        name="shard-rolled",
        number=0,
        component="case",
        cause="The last rank's shard of a parameter is one element off.",
        apply=lambda case: _spoilt(case, _rolled),
        active=always,
        flags=("output.0",),
    ),
    Fault(
        name="part-dropped",
        number=39,
        component="case",
        cause="The last rank's shard of a parameter is zero, so that its part is missing.",
        apply=lambda case: _spoilt(case, torch.zeros_like),
        active=always,
        flags=("output.0",),
    ),
)
