"""Recording the collectives of a user's module, which may call torch.distributed directly.

Built-in modules go through `Group`, which records by itself on every backend. This sees whatever reaches
torch's dispatcher under c10d, at a cost per tensor operation, and so runs for user cases only.

Not covered: collectives issued outside the dispatcher (a custom C++ extension).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.distributed.distributed_c10d import _resolve_process_group  # type: ignore[attr-defined]
from torch.utils._python_dispatch import TorchDispatchMode

from .group import collective
from .result import Collective

# The dispatcher's name -> ours, and which argument holds the rank's input.
_KINDS = {
    "allreduce_": ("all_reduce", 0),
    "allreduce_coalesced_": ("all_reduce", 0),
    "allgather_": ("all_gather", 1),
    "_allgather_base_": ("all_gather", 1),
    "allgather_into_tensor_coalesced_": ("all_gather", 1),
    "reduce_scatter_": ("reduce_scatter", 1),
    "_reduce_scatter_base_": ("reduce_scatter", 1),
    "reduce_scatter_tensor_coalesced_": ("reduce_scatter", 1),
    "broadcast_": ("broadcast", 0),
    "all_reduce": ("all_reduce", 0),
    "all_gather_into_tensor": ("all_gather", 0),
    "reduce_scatter_tensor": ("reduce_scatter", 0),
}
_IGNORED = {"barrier", "monitored_barrier", "wait_tensor", "wrap_tensor_autograd"}


class CollectiveRecorder(TorchDispatchMode):
    """Collects the calls made inside its `with` block in `calls`, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Collective] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Asked by torch: True, its default, would import torch._dynamo at the first operation, a second per rank."""
        return False

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = func.overloadpacket.__name__
        if func.namespace in ("c10d", "_c10d_functional") and name.strip("_") not in _IGNORED:
            kind, position = _KINDS.get(name, (name.strip("_"), 0))
            tensor = _first(args[position:], lambda x: isinstance(x, torch.Tensor))
            shape, dtype = ((), torch.uint8) if tensor is None else (tuple(tensor.shape), tensor.dtype)
            self.calls.append(collective(kind, _group_size(args), shape, dtype))
        return func(*args, **(kwargs or {}))


def _first(values: Iterable[Any], wanted: Callable[[Any], bool]) -> Any:
    """The first wanted value, looking into lists."""
    for value in values:
        if wanted(value):
            return value
        if isinstance(value, (list, tuple)):
            found = _first(value, wanted)
            if found is not None:
                return found
    return None


def _group_size(args: tuple[Any, ...]) -> int:
    """The size of the process group among the arguments, boxed or by name; else that of the default group."""
    boxed = _first(args, lambda x: isinstance(x, torch.ScriptObject))
    if boxed is not None:
        return int(torch.distributed.ProcessGroup.unbox(boxed).size())
    named = _first(reversed(args), lambda x: isinstance(x, str))
    if named is not None:
        return int(_resolve_process_group(named).size())
    return torch.distributed.get_world_size()
