"""The stack of each virtual rank, from the log into which the process of all ranks was made to write its stacks."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ..launch.stacks import Stack, frames_by_thread, name_ranks, suspects

_OUTER = re.compile(
    r'/(?:xla/virtual_cores|backends/xla|torch_xla(?:_private|/.*)|concurrent/futures/.*|threading)\.py", line \d+ in '
)


def virtual_stacks(log: str, ranks: Iterable[tuple[int, int]]) -> dict[int, Stack]:
    """By rank, the stack of each that had not returned, without the frames that start ranks.

    Args:
        log: text of the process's log, which ends with its stacks.
        ranks: of each thread that is a rank, the rank and the thread's identity.
    """
    threads = frames_by_thread(log)
    found = {}
    for rank, ident in ranks:
        frames = list(threads.get(ident, ()))
        while frames and _OUTER.search(frames[-1]):
            frames.pop()
        if frames:
            found[rank] = Stack(frames=tuple(frames))
    return dict(sorted(found.items()))


def whereabouts(stacks: dict[int, Stack], size: int) -> str:
    """A sentence on which of `size` ranks were still running, and which of them the others waited for."""
    missing = suspects(stacks)
    named = f"all {size} ranks" if len(stacks) == size > 1 else f"{name_ranks(stacks)} of {size}"
    text = f"{named} {'was' if len(stacks) == 1 else 'were'} still running"
    if not missing:
        return text
    are, it = ("is", "it") if len(missing) == 1 else ("are", "them")
    return f"{text}, and {name_ranks(missing)} {are} not where the others wait for {it}"
