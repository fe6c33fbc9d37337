"""Mistakes that any module can have, for the control of a user's case.

They change what ranks load, before anything is computed from it, and so act however a module uses its parameters; or,
for a module that loads nothing, they change its inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..case.calls import Call, now
from ..case.case import Case
from ..parallel.dtensors import as_placed, local
from ..parallel.group import current_group
from ..results.tensor_names import of_call, said
from .fault import EVERY, Fault, Spoil, always

INPUT = "input "  # and the rest of its name: the place of a fault in an input instead of a parameter


def spoilt(case: Case, spoil: Spoil, place: str = "", rank: int = EVERY) -> Case:
    """The case with something spoilt in its sharded module.

    Args:
        case: a user's.
        spoil: a rank's tensor -> the same in another form, of the same shape and dtype.
        place: the name of a parameter or buffer, "input 0", "input mask of decode" and so on, or "" for every parameter
            and buffer.
        rank: the rank whose tensors are spoilt; EVERY for all ranks.
    """

    def sharded() -> nn.Module:
        module = case.sharded()
        if rank in (EVERY, current_group().rank):
            (_spoil_input if place.startswith(INPUT) else _spoil_loaded)(module, place, spoil)
        return module

    return replace(case, sharded=sharded)


def _spoil_loaded(module: Any, place: str, spoil: Spoil) -> None:
    """Spoil a parameter under each of its names, because loading the next name would overwrite it."""
    owners = dict(module.named_parameters(remove_duplicate=False))
    names = {name for name, owner in owners.items() if owner is owners.get(place)} | {place}
    load = module.load_state_dict

    def spoilt_load(values: dict[str, torch.Tensor], *rest: Any, **named: Any) -> Any:
        tensors = {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}
        spoils = {name: value for name, value in tensors.items() if not place or name in names}
        changed = {name: as_placed(spoil(local(value)), value) for name, value in spoils.items()}
        return load(values | changed, *rest, **named)

    module.load_state_dict = spoilt_load


def _spoil_input(module: nn.Module, place: str, spoil: Spoil) -> None:
    def hook(
        _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        call = now().name
        spoilt = Call(*args, **kwargs).changed(lambda name, x: spoil(x) if said(of_call(call, name)) == place else x)
        return spoilt.args, spoilt.kwargs

    module.register_forward_pre_hook(hook, with_kwargs=True)


def _rolled(x: torch.Tensor) -> torch.Tensor:
    return x.flatten().roll(1).view(x.shape)


def _generic(name: str, number: int, cause: str, spoil: Callable[[torch.Tensor], torch.Tensor]) -> Fault:
    return Fault(
        name=name,
        number=number,
        component="case",
        cause=cause,
        apply=lambda case: spoilt(case, spoil),
        spoil=spoil,
        active=always,
        flags=("output.0",),
    )


FAULTS = (
    _generic("shard-rolled", 0, "A rank's shard of a parameter is one element off.", _rolled),
    _generic(
        "part-dropped", 39, "A rank's shard of a parameter is zero, so that its part is missing.", torch.zeros_like
    ),
)
