"""The call in which a rank waits for others, from its traceback or stack, and whether an error only says that one left.

No torch.
"""

import re
from collections.abc import Iterable

_FRAME = re.compile(r'^ *File "(?P<file>.*)", line (?P<line>\d+),? in (?P<function>.*)$')
# Files of collectives and of the rendezvous; a frame in one of them waits for peers.
WAITING = ("/torch/distributed/", "/tp_harness/parallel/group.py", "/tp_harness/xla/rendezvous.py")
# gloo's messages when a peer has gone, or does not come.
_LOST = re.compile(r"gloo.*(connection (closed|reset)|broken pipe|timed out|timeout)", re.IGNORECASE)


def is_loss(error: str) -> bool:
    """Whether an error only says that a peer is gone, so that another rank is the cause."""
    return bool(_LOST.search(error))


def waiting_call(frames: Iterable[str]) -> str:
    """The collective call that a rank waits in, and its caller: `all_reduce (model.py:15 in forward)`; "" if none.

    Args:
        frames: lines of a traceback or a stack, the innermost call first; lines that are no frames are ignored.
    """
    kind = ""
    for frame in filter(None, map(_FRAME.match, frames)):
        if any(part in frame["file"] for part in WAITING):
            kind = kind if frame["function"] == "wrapper" else frame["function"].strip("_")
        elif kind and "/torch/" not in frame["file"]:
            return f"{kind} ({frame['file'].rpartition('/')[2]}:{frame['line']} in {frame['function']})"
    return kind
