"""A rank's module made before any rank starts, by a process alone: what torch.distributed tells it then.

Its groups are of torch's backend "fake", which answers at once and computes nothing. So a constructor that asks other
ranks for something may fail here and be right there, and so may one that keeps a group for the next degree: all degrees
are tried in one process, while their ranks are processes of their own. `plan.check_plan` then says nothing of it, and
the ranks do.
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
    """What a module made before any rank starts says nothing of the ranks': it needs the others. See `check_plan`."""


@contextmanager
def told_by_others() -> Iterator[list[Collective]]:
    """The collectives of torch.distributed that a constructor calls, whose results are none without other ranks."""
    if not torch.distributed.is_initialized():
        yield []
        return
    with CollectiveRecorder() as recorder:
        yield recorder.calls


def of_torch_distributed(error: BaseException) -> bool:
    """Whether it was raised by, or below, a call of torch.distributed."""
    if not torch.distributed.is_initialized():
        return False
    folder, trace, files = Path(torch.distributed.__file__).parent, error.__traceback__, []
    while trace:
        files.append(Path(trace.tb_frame.f_code.co_filename))
        trace = trace.tb_next
    return any(folder in file.parents for file in files) or "INTERNAL ASSERT FAILED" in described(error)  # the store's


def makes_groups() -> bool:
    """Whether a module that was made in this stand-in group made groups of its own: libraries keep them for later."""
    return torch.distributed.is_initialized() and group_count() > 1


def unrehearsed_note(reasons: Mapping[int, str]) -> str:
    """What a user should know of degrees at which no module could be made before the ranks; `reasons` by degree."""
    degrees, why = ", ".join(map(str, reasons)), next(iter(reasons.values()))
    return (
        f"the sharded module was not tried before the ranks at tp {degrees} ({why}): it may need the other ranks, or "
        "groups that were not kept from another degree; what is wrong with it or its plan ends the ranks instead"
    )
