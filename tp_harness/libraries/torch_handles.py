"""Whether anybody has waited for the handle of a collective: methods of torch's Work are replaced in this process.

A handle counts as waited for when its future or result is asked for, or when it was said to be complete.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch.distributed as dist

_WAITING = ("wait", "synchronize", "result", "get_future", "get_future_result", "block_current_stream")
_COMPLETE = "is_completed"
_ORIGINAL: dict[str, Callable[..., Any]] = {}
_open_handles: dict[int, dist.Work] = {}  # by identity, which stays while a handle is kept


def watch(work: dist.Work) -> None:
    """Note from now on whether anybody waits for a handle; one that nobody waits for is kept."""
    if not _ORIGINAL:
        _replace_methods()
    _open_handles[id(work)] = work


def is_pending(work: dist.Work) -> bool:
    """Whether nobody has waited for a handle that is watched."""
    return id(work) in _open_handles


def unseen(method: str, work: dist.Work) -> Any:
    """What a method of a handle returns, without its being waited for."""
    return _ORIGINAL.get(method, getattr(dist.Work, method))(work)


def _replace_methods() -> None:
    for name in (*_WAITING, _COMPLETE):
        if method := getattr(dist.Work, name, None):  # not every torch has all
            _ORIGINAL[name] = method
            setattr(dist.Work, name, _noting(name, method))


def _noting(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def noting(work: dist.Work, *args: Any, **kwargs: Any) -> Any:
        found = method(work, *args, **kwargs)
        if name != _COMPLETE or found:
            _open_handles.pop(id(work), None)
        return found

    return noting
