"""A rank's module made before any rank starts, in one process: what torch.distributed gives it then.

Its groups are of torch's backend "fake", which returns at once and computes nothing. So a constructor that needs
results of other ranks may fail here and be right in a rank. So may one that keeps a group for the next degree: all
degrees are tried in one process, while their ranks are processes of their own. `plan.check_plan` then raises
`UnrehearsedError`, and the ranks check the module.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from ..errors import described
from ..libraries.torch_private import group_count
from ..parallel.collective_recorder import CollectiveRecorder
from ..results.result import Collective


class UnrehearsedError(RuntimeError):
    """A module could not be made without the other ranks, which says nothing about it. See `check_plan`."""


@contextmanager
def told_by_others() -> Iterator[list[Collective]]:
    """Record the collectives that a constructor calls; without other ranks, their results mean nothing."""
    if not torch.distributed.is_initialized():
        yield []
        return
    with CollectiveRecorder() as recorder:
        yield recorder.calls


def of_torch_distributed(error: BaseException) -> bool:
    """Whether the error was raised in torch.distributed or in what it called."""
    if not torch.distributed.is_initialized():
        return False
    folder, trace, files = Path(torch.distributed.__file__).parent, error.__traceback__, []
    while trace:
        files.append(Path(trace.tb_frame.f_code.co_filename))
        trace = trace.tb_next
    return any(folder in file.parents for file in files) or "INTERNAL ASSERT FAILED" in described(error)  # the store's


def makes_groups() -> bool:
    """Whether a module made in this stand-in group has made groups of its own, which libraries keep for later."""
    return torch.distributed.is_initialized() and group_count() > 1


def unrehearsed_note(reasons: Mapping[int, str]) -> str:
    """The note for a user on the degrees at which no module could be made before the ranks; `reasons` by degree."""
    degrees, why = ", ".join(map(str, reasons)), next(iter(reasons.values()))
    return (
        f"the sharded module was not tried before the ranks at tp {degrees} ({why}): it may need the other ranks, or "
        "groups that were not kept from another degree; what is wrong with it or its plan ends the ranks instead"
    )
