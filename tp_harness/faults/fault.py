"""What a fault is: a mistake that tensor-parallel models have had, as data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..case.case import Case
from ..config.dtypes import DTYPES, SIXTEEN_BITS
from ..errors import UsageError

Spoil = Callable[[torch.Tensor], torch.Tensor]
EVERY = -1  # as a rank: all of them
NOT_IN_16_BITS = tuple(dtype for dtype in DTYPES if dtype not in SIXTEEN_BITS)  # where a mistake is small

Active = Callable[[Any, int], bool]  # (a model together with how it is run, tp_degree)


def always(config: Any, tp: int) -> bool:
    """True: active at every degree, one rank included."""
    return True


def sharded(config: Any, tp: int) -> bool:
    """Active where `tp` is more than one rank."""
    return tp > 1


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A mistake, where it shows, and what must be seen of it.

    Args:
        name: how the command line, jobs and results call it.
        number: its row in the published list of faults, for the docs; 0 if it is not in that list.
        component: the built-in component it is put into.
        cause: one sentence for whoever reads the verdict.
        apply: the component's case -> the same with the mistake in it; see `ways`.
        active: (config of the run, tp_degree) -> whether it changes any bit there. Where it does not, the
            faulty code is the right code; `tp-harness faults` proves it.
        flags: tapped tensors or outputs that exceed their limits, the first to do so at the front.
        layer: the layer it is put into.
        visible_in: dtypes in which the verdict must reject it wherever it is active.
        loads: the ranks hold wrong shards. The reassembly check would see it; another check must see it too.
        heavy: it copies the experts' weights, for which only a run of faults plans memory.
        faint: its error is so near to rounding that it may pass on few tokens or at other sizes; never a control.
        signature: the name that diagnosis gives to it, if it has one.
        spoil: of a fault that any module can have: what becomes of one tensor of a rank; see `generic.spoilt`.
    """

    name: str
    number: int
    component: str
    cause: str
    apply: Callable[[Case], Case]
    active: Active
    flags: tuple[str, ...]
    layer: int = 0
    visible_in: tuple[str, ...] = DTYPES
    loads: bool = False
    heavy: bool = False
    faint: bool = False
    signature: str | None = None
    spoil: Spoil | None = None

    def __post_init__(self) -> None:
        if not self.flags or not self.cause.endswith("."):
            raise UsageError(
                f"fault {self.name}: at least one flagged tensor and a cause that is a sentence are needed."
            )
