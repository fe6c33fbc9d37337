"""Ways out of a tensor that torch's dispatcher does not see: .numpy(), .tolist(), data_ptr, a thread, another process.

Each is noted in `Seen`, and a run with one proves nothing. What is read that way is nan besides: see `Memory`.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from ..libraries.torch_private import leaves
from .memory import Memory

# Methods and attributes of a tensor that hand out its elements, their address, or a copy that no operation makes.
_ELEMENTS = (
    "numpy",
    "tolist",
    "data_ptr",
    "untyped_storage",
    "storage",
    "_typed_storage",
    "share_memory_",
    "to_dlpack",
    "__array__",
    "__dlpack__",
    "__reduce_ex__",
    "__deepcopy__",
    "__cuda_array_interface__",
)
_AUDITED = {
    "_thread.start_new_thread": "a thread was started",
    "_thread.start_joinable_thread": "a thread was started",
    "os.fork": "a process was started",
    "os.posix_spawn": "a process was started",
    "subprocess.Popen": "a process was started",
}
_running = threading.local()  # `seen`: what notes the escapes of this thread's run


class ElementReads(TorchFunctionMode):
    """Notes calls that hand out a tensor's elements or their address."""

    def __init__(self, memory: Memory) -> None:
        super().__init__()
        self.memory = memory

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        name = getattr(func.__self__, "__name__", name) if name == "__get__" else name
        if name in _ELEMENTS and args and isinstance(args[0], torch.Tensor):
            self.memory.hand_out(args[0], name)
        elif name == "item" and any(map(self.memory.holds, leaves(args))):
            self.memory.seen.escape("item() made a Python number of an element")
        return func(*args, **(kwargs or {}))


@contextmanager
def watching(memory: Memory) -> Iterator[None]:
    """Note in the memory's `seen` how elements leave this thread's tensors while the block runs."""
    _install()
    before = getattr(_running, "seen", None)
    _running.seen = memory.seen
    try:
        with ElementReads(memory):
            yield
    finally:
        _running.seen = before


def _audit(event: str, _arguments: object) -> None:
    sentence = _AUDITED.get(event)
    if sentence is None:
        return
    seen = getattr(_running, "seen", None)
    if seen is not None:
        seen.escape(f"{sentence} while the module ran, whose work is not seen")


def _once(function: Callable[[], None]) -> Callable[[], None]:
    done = threading.Event()

    def run() -> None:
        if not done.is_set():
            done.set()
            function()

    return run


@_once
def _install() -> None:
    """Python keeps an audit hook until it ends; outside of `watching` this one does nothing."""
    sys.addaudithook(_audit)
