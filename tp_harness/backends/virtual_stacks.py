"""Where each virtual rank was when its process was made to say so: from the log of the process that holds them."""

from __future__ import annotations

import re

from ..launch.stacks import Stack, frames_by_thread, name_ranks, suspects

_RANK = re.compile(r"^rank (?P<rank>\d+) of \d+ is thread (?P<thread>0x[0-9a-f]+)$", re.MULTILINE)  # thread_line's
_OUTER = re.compile(
    r'/(?:xla/virtual_cores|backends/xla|torch_xla/.*|concurrent/futures/.*|threading)\.py", line \d+ in '
)


def virtual_stacks(log: str) -> dict[int, Stack]:
    """By rank, the stack of each that had not returned; without what starts ranks.

    Args:
        log: of the process, with `xla.virtual_cores.thread_line` of every rank and the stacks that were written last.
    """
    threads = frames_by_thread(log)
    found = {}
    for match in _RANK.finditer(log):
        frames = list(threads.get(int(match["thread"], 16), ()))
        while frames and _OUTER.search(frames[-1]):
            frames.pop()
        if frames:
            found[int(match["rank"])] = Stack(frames=tuple(frames))
    return dict(sorted(found.items()))


def whereabouts(stacks: dict[int, Stack], size: int) -> str:
    """Which ranks were still running, and which of them the others waited for."""
    missing = suspects(stacks)
    named = f"all {size} ranks" if len(stacks) == size > 1 else f"{name_ranks(stacks)} of {size}"
    text = f"{named} {'was' if len(stacks) == 1 else 'were'} still running"
    if not missing:
        return text
    are, it = ("is", "it") if len(missing) == 1 else ("are", "them")
    return f"{text}, and {name_ranks(missing)} {are} not where the others wait for {it}"
