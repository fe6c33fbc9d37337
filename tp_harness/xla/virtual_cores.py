"""Virtual cores: ranks as threads of this process, each with a device of its own."""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..libraries.torch_private import give_threads_groups_of_their_own
from ..libraries.torch_xla_private import run_thread_per_device
from .rendezvous import Meeting

if TYPE_CHECKING:
    from .device import XLADevice
    from .group import XLAGroup

_LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID")
Entry = Callable[["XLAGroup", "XLADevice"], None]


def environment(size: int) -> dict[str, str]:
    """What torch-xla must find in the environment when it is imported, to offer `size` virtual cores.

    A collective blocks a thread of XLA's pool, which by default has one per processor: too few, and ranks that have
    not arrived never get one. A program runs a few times only, so LLVM's optimisation, most of a compilation, is left
    out; what the user's XLA_FLAGS say comes last and wins.
    """
    flags = f"--xla_backend_optimization_level=0 {os.environ.get('XLA_FLAGS', '')}".strip()
    pool = str(max(8, 4 * size))
    return {"PJRT_DEVICE": "CPU", "CPU_NUM_DEVICES": str(size), "XLA_THREAD_POOL_SIZE": pool, "XLA_FLAGS": flags}


def _process_groups(size: int) -> Callable[[int], None]:
    """Give every thread a torch.distributed of its own, as torch's tests of collectives do.

    Returns what joins the default group as a rank, for modules that call torch.distributed: torch-xla's "xla" backend,
    which traces collectives into the program.
    """
    import torch.distributed as dist  # noqa: PLC0415

    give_threads_groups_of_their_own()
    store = dist.HashStore()  # type: ignore[attr-defined]
    return lambda rank: dist.init_process_group("xla", store=store, rank=rank, world_size=size)


@dataclass(frozen=True, kw_only=True)
class Failure:
    """The first rank that raised, and what."""

    rank: int
    error: Exception
    traceback: str


def run_on_cores(size: int, entry: Entry, begin: Callable[[int], None] = lambda rank: None) -> Failure | None:
    """Call `entry` on `size` ranks and wait for all; imports torch-xla, whose world this process has from then on.

    A rank that raises makes the others leave at their next meeting. Each first calls `begin` with its number.
    """
    os.environ.update(environment(size))
    for name in _LAUNCHER:  # this process's own rank, which is none of theirs
        os.environ.pop(name, None)
    from .device import XLADevice  # noqa: PLC0415  (not before the environment is set)
    from .group import XLAGroup  # noqa: PLC0415

    join = _process_groups(size)
    meeting = Meeting(size)
    failures: list[tuple[int, Failure]] = []

    def rank() -> None:
        number = -1
        try:
            group = XLAGroup(size)
            number = group.rank
            begin(number)
            join(number)
            entry(group, XLADevice(number, size, meeting))
        except threading.BrokenBarrierError:
            return
        except Exception as error:
            moment = time.monotonic_ns()
            meeting.leave()
            failures.append((moment, Failure(rank=number, error=error, traceback=traceback.format_exc())))

    run_thread_per_device(rank)
    return min(failures, key=lambda failure: failure[0])[1] if failures else None
