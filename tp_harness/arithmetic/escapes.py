"""Ways out of a tensor that torch's dispatcher does not see: .numpy(), .tolist(), data_ptr, a thread, another process.

Each is noted in `Seen`, and a run with one proves nothing. What is read that way is nan besides: see `Memory`.

Not covered: a NumPy array of a parameter's or an input's own values, made before the run, of which code reads elements
as Python numbers.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache, wraps
from pkgutil import resolve_name
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from ..libraries.torch_private import leaves
from ..system.threads import turns
from .memory import Memory

# Methods and attributes of a tensor that hand out its elements, their address, or a copy that no operation makes.
_ELEMENTS = frozenset(
    (
        *("numpy", "__array__", "tolist", "data_ptr", "const_data_ptr", "mutable_data_ptr", "__cuda_array_interface__"),
        *("untyped_storage", "storage", "_typed_storage", "share_memory_", "to_dlpack", "__dlpack__"),
        *("__reduce_ex__", "__deepcopy__"),
    )
)
_READS = {"item": "a Python number of an element", "__repr__": "text of elements", "__format__": "text of elements"}
_MAKERS = ("tensor", "as_tensor", "asarray", "new_tensor")  # of tensors, also of another library's arrays
# What no TorchFunctionMode sees: one hands out a tensor's memory, what the others do is not followed.
_GIVING = "to_dlpack"
_UNSEEN = (
    ("torch.utils.dlpack", _GIVING),
    ("torch", _GIVING),
    ("torch.utils.dlpack", "from_dlpack"),
    ("torch", "from_dlpack"),
    ("torch", "frombuffer"),
    ("torch", "compile"),
    ("threading:Thread", "start"),
    ("_thread", "start_new_thread"),
    ("multiprocessing.process:BaseProcess", "start"),
)
_AUDITED = ("os.fork", "os.forkpty", "os.posix_spawn", "os.system", "subprocess.Popen")  # Python's events
_running = threading.local()  # `memory`: that of this thread's run
_ranks: weakref.WeakSet[threading.Thread] = weakref.WeakSet()  # threads that have such a run
_compiling = threading.Lock()
_inside: list[None] = []  # one for each thread in `_eagerly`
_stances: list[Any] = []  # what sets torch.compile's back


class ElementReads(TorchFunctionMode):
    """Notes calls that hand out a tensor's elements or their address."""

    def __init__(self, memory: Memory) -> None:
        super().__init__()
        self.memory = memory

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = _watched(func)
        if name in _ELEMENTS and args and isinstance(args[0], torch.Tensor):
            self.memory.hand_out(args[0], name)
        elif name in _READS and any(map(self.memory.holds, leaves(args))):
            self.memory.seen.escape(f"{name}() made {_READS[name]}")
        elif name in _MAKERS and any(map(_is_array, (*args, *(kwargs or {}).values()))):
            self.memory.seen.escape(f"{name}() made a tensor of another library's array while the module ran")
        return func(*args, **(kwargs or {}))


@lru_cache(maxsize=4096)
def _watched(func: Any) -> str:
    """The name of a function of torch, or of an attribute of tensors, that is looked at; "" of any other."""
    name = getattr(func, "__name__", "")
    name = getattr(func.__self__, "__name__", name) if name == "__get__" else name
    return name if name in _ELEMENTS or name in _READS or name in _MAKERS else ""


def _is_array(x: object) -> bool:
    """Whether a value is memory of another library; a NumPy number is none."""
    if isinstance(x, (torch.Tensor, type)):
        return False
    return isinstance(x, (bytes, bytearray, memoryview)) or bool(getattr(x, "shape", ()))


@contextmanager
def watching(memory: Memory) -> Iterator[None]:
    """Note in the memory's `seen` how elements leave this thread's tensors while the block runs."""
    _install()
    before = getattr(_running, "memory", None)
    _running.memory = memory
    _ranks.add(threading.current_thread())
    others = turns()
    try:
        with _eagerly(), ElementReads(memory):
            yield
    finally:
        _running.memory = before
        for thread, count in turns().items():
            if count > others.get(thread, count) and thread not in _ranks:
                memory.seen.escape(f"the thread {thread.name} ran beside the module, and its work is not seen")


@contextmanager
def _eagerly() -> Iterator[None]:
    """Have what torch.compile compiles run as it is written, in all threads, while any of them is in the block."""
    with _compiling:
        if "torch._dynamo" in sys.modules and not _stances:
            _stances.append(torch.compiler.set_stance("force_eager"))
        _inside.append(None)
    try:
        yield
    finally:
        with _compiling:
            _inside.pop()
            if _stances and not _inside:
                _stances.pop().__exit__(None, None, None)


def _audit(event: str, _arguments: object) -> None:
    if event in _AUDITED:
        _note(event)


def _note(name: str) -> None:
    memory = getattr(_running, "memory", None)
    if memory is not None:
        memory.seen.escape(f"{name}() was called while the module ran, whose work is not seen")


def _once(function: Callable[[], None]) -> Callable[[], None]:
    lock = threading.Lock()
    done: list[bool] = []

    def run() -> None:
        with lock:
            if not done:
                function()
                done.append(True)

    return run


@_once
def _install() -> None:
    """Outside of `watching` the functions do what they did, and the hook, which Python keeps until it ends, nothing."""
    sys.addaudithook(_audit)
    for place, name in _UNSEEN:
        _wrap(resolve_name(place), name)


def _wrap(place: Any, name: str) -> None:
    """Have a function note that it was called, in the run of the thread that calls it."""
    function = getattr(place, name, None)
    if function is None:
        return

    @wraps(function)
    def noting(*args: Any, **kwargs: Any) -> Any:
        memory = getattr(_running, "memory", None)
        if memory is not None and name == _GIVING and args:
            memory.hand_out(args[0], name)
        else:
            _note(f"{place.__name__}.{name}")
        return function(*args, **kwargs)

    setattr(place, name, noting)
