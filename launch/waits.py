"""In which call ranks wait for others, as tracebacks and stacks say, and whether an error is only another's absence.

No torch.
"""

import re
from collections.abc import Iterable

_FRAME = re.compile(r'^ *File "(?P<file>.*)", line (?P<line>\d+),? in (?P<function>.*)$')
# Code of collectives and of meetings; a frame in it waits for peers.
WAITING = ("/torch/distributed/", "/tp_harness/parallel/group.py", "/tp_harness/xla/rendezvous.py")
# What gloo says when a peer has gone, or does not come.
_LOST = re.compile(r"gloo.*(connection (closed|reset)|broken pipe|timed out|timeout)", re.IGNORECASE)


def is_loss(error: str) -> bool:
    """Whether an error says no more than that a peer is gone: another rank is the cause."""
    return bool(_LOST.search(error))


def waiting_call(frames: Iterable[str]) -> str:
    """The call that a rank waits in and whose line it is, `all_reduce (model.py:15 in forward)`; "" if none is found.

    Args:
        frames: lines of a traceback or a stack, the innermost call first; those that are no frames are passed over.
    """
    kind = ""
    for frame in filter(None, map(_FRAME.match, frames)):
        if any(part in frame["file"] for part in WAITING):
            kind = kind if frame["function"] == "wrapper" else frame["function"].strip("_")
        elif kind and "/torch/" not in frame["file"]:
            return f"{kind} ({frame['file'].rpartition('/')[2]}:{frame['line']} in {frame['function']})"
    return kind
