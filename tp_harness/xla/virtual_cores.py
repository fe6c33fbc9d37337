"""Virtual cores: ranks as threads of this process, each with its own CPU device of torch-xla."""

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
    """The environment variables that torch-xla needs when it is imported, to offer `size` virtual cores.

    A collective blocks a thread of XLA's pool, which by default has one per processor: with too few, ranks that have
    not arrived never get one. A program runs a few times only, so LLVM's optimisation, most of a compilation, is off;
    the user's XLA_FLAGS come last and override it.
    """
    flags = f"--xla_backend_optimization_level=0 {os.environ.get('XLA_FLAGS', '')}".strip()
    pool = str(max(8, 4 * size))
    return {"PJRT_DEVICE": "CPU", "CPU_NUM_DEVICES": str(size), "XLA_THREAD_POOL_SIZE": pool, "XLA_FLAGS": flags}


def _process_groups(size: int) -> Callable[[int], None]:
    """Give every thread a torch.distributed of its own, as torch's tests of collectives do.

    Returns:
        A function of the rank that joins the default group, for modules that call torch.distributed. Its backend is
        torch-xla's "xla", which traces collectives into the program.
    """
    import torch.distributed as dist  # noqa: PLC0415

    give_threads_groups_of_their_own()
    store = dist.HashStore()  # type: ignore[attr-defined]
    return lambda rank: dist.init_process_group("xla", store=store, rank=rank, world_size=size)


@dataclass(frozen=True, kw_only=True)
class Failure:
    """The first rank that raised, and its exception."""

    rank: int
    error: Exception
    traceback: str


def run_on_cores(size: int, entry: Entry, begin: Callable[[int], None] = lambda rank: None) -> Failure | None:
    """Call `entry` on `size` ranks and wait for all; imports torch-xla, which fixes the number of ranks per process.

    A rank that raises ends the others at their next exchange. Each rank first calls `begin` with its number.

    Returns:
        The failure of the rank that raised first; None where none did.
    """
    os.environ.update(environment(size))
    for name in _LAUNCHER:  # the rank of this process, which is no rank of the job
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
