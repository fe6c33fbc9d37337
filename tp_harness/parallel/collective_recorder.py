"""Recording the collectives of a user's module, which may call torch.distributed directly.

Built-in modules go through `Group`, which records by itself on every backend. This sees all that reaches torch's
dispatcher under c10d. It costs time at every tensor operation, and so runs for user cases only.

Not covered: collectives issued outside the dispatcher (a custom C++ extension).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist

from ..errors import calling_place
from ..libraries.torch_handles import is_pending, watch
from ..libraries.torch_private import DispatchMode, named_arguments, process_group, reduction_of_caller, unboxed
from ..results.collective import Collective, Exchange
from .dtensors import is_dtensor_type
from .group import collective
from .mesh import current_mesh

# How the dispatcher's names begin -> ours; another name is its own kind.
_KINDS = (
    ("allreduce", "all_reduce"),
    ("all_reduce", "all_reduce"),
    ("allgather", "all_gather"),
    ("all_gather", "all_gather"),
    ("reduce_scatter", "reduce_scatter"),
    ("alltoall", "all_to_all"),
    ("all_to_all", "all_to_all"),
    ("isend", "send"),
    ("irecv", "recv"),
    ("recv", "recv"),
)
# The arguments that hold the rank's input; a scatter gives only its root one.
_INPUTS = ("input_tensors", "input_tensor", "inputs", "input_list", "input", "tensors", "tensor")
_OUTPUTS = ("output_tensors", "output")
_IGNORED = {"barrier", "monitored_barrier", "wait_tensor", "wrap_tensor_autograd", "check_for_nan"}

_OF_MESH, _UNNAMED = "mesh_", "dim_"  # begin the description of a DeviceMesh's group, and its axis without a name

Arguments = Mapping[str, Any]  # of a call, by name


class CollectiveRecorder(DispatchMode):
    """Collects the calls made inside its `with` block in `calls`, in order, and their handles."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Collective] = []
        self._handles: list[tuple[torch.distributed.Work, Collective, str]] = []

    @property
    def unawaited(self) -> tuple[str, ...]:
        """A sentence on each call whose handle nobody has waited for."""
        return tuple(
            f"{call}{f', issued at {place},' if place else ''} has a handle that nobody waited for: call its wait() "
            "before the forward ends"
            for work, call, place in self._handles
            if is_pending(work)
        )

    def __torch_dispatch__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if any(map(is_dtensor_type, types)):
            return NotImplemented  # DTensor's own dispatch is next, and its calls arrive here again
        name = func.overloadpacket.__name__.strip("_")
        if func.namespace not in ("c10d", "_c10d_functional") or name in _IGNORED:
            return func(*args, **(kwargs or {}))
        calls = list(_calls(name, named_arguments(func, args, kwargs)))
        self.calls.extend(calls)
        returned = func(*args, **(kwargs or {}))
        if func.namespace == "c10d" and calls:
            self._keep(returned[-1] if isinstance(returned, tuple) else returned, calls[0])
        return returned

    def _keep(self, work: Any, call: Collective) -> None:
        handle = unboxed(work)
        watch(handle)
        self._handles.append((handle, call, calling_place()))


def _calls(name: str, given: Arguments) -> Iterator[Collective]:
    """What one operation of the dispatcher calls: one collective, or several messages at once."""
    if name == "batch_p2p_ops":
        each = zip(given["op_list"], given["peer_list"], given["tag_list"], given["tensors"], strict=True)
        for operation, peer, tag, tensor in each:
            message = {"tensor": tensor, "tag": tag, "group_name": given["group_name"]}
            yield from _calls(operation, message | {"dst" if "send" in operation else "src": peer})
        return
    kind = next((kind for begin, kind in _KINDS if name.startswith(begin)), name)
    group = _group(given)
    members = dist.get_process_group_ranks(group)
    inputs, outputs = _tensors(given, _INPUTS), _tensors(given, _OUTPUTS)
    own = () if len(members) == dist.get_world_size() else tuple(members)
    exchange = Exchange(
        members=own,
        axis=current_mesh().axis_of(own) or _named_axis(group),
        peer=_peer(given, members),
        tag=given.get("tag", 0),
        operation=_operation(given["reduce_op"]) if "reduce_op" in given else "",
        sends=_shares(inputs, given.get("input_split_sizes"), len(members)) if kind == "all_to_all" else (),
        receives=_received(outputs, inputs, given, len(members)) if kind == "all_to_all" else (),
    )
    of_rank = outputs if kind == "scatter" else inputs
    if name.endswith("coalesced"):  # one call for each tensor
        for tensor in inputs:
            yield collective(kind, len(members), tuple(tensor.shape), tensor.dtype, exchange)
        return
    shape, dtype = (tuple(of_rank[0].shape), of_rank[0].dtype) if of_rank else ((), torch.uint8)
    if kind == "all_to_all" and len(inputs) > 1:  # a list, of which each member gets one
        shape = (sum(exchange.sends),)
    yield collective(kind, len(members), shape, dtype, exchange)


def _group(given: Arguments) -> dist.ProcessGroup:
    """The process group among the arguments, boxed, by name or itself."""
    return process_group(given["process_group"] if "process_group" in given else given["group_name"])


def _named_axis(group: dist.ProcessGroup) -> str:
    """The name of a DeviceMesh's axis that a group is along, as torch describes it; "" if it has none."""
    axis = str(group.group_desc).partition(_OF_MESH)[2]
    return "" if axis.startswith(_UNNAMED) else axis


def _peer(given: Arguments, members: Sequence[int]) -> int | None:
    """The other side of a message, or the root of a collective, as a rank of the default group."""
    number = next((given[name] for name in ("dst", "src", "root_rank") if name in given), None)
    return None if number is None else members[number]


def _operation(given: object) -> str:
    """The name of a reduction's operation."""
    return given.lower() if isinstance(given, str) else reduction_of_caller()


def _tensors(given: Arguments, names: Sequence[str]) -> list[torch.Tensor]:
    """The tensors of the first of these arguments that there is, out of lists of lists too."""
    return list(_flat(next((given[name] for name in names if name in given), ())))


def _flat(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _flat(item)


def _shares(tensors: Sequence[torch.Tensor], splits: Sequence[int] | None, size: int) -> tuple[int, ...]:
    """Elements for each member: a tensor each, or one tensor split along dimension 0, equally without `splits`."""
    if len(tensors) == size > 1:
        return tuple(tensor.numel() for tensor in tensors)
    row = tensors[0].shape[1:].numel()
    return tuple(int(rows) * row for rows in splits) if splits else (tensors[0].numel() // size,) * size


def _received(
    outputs: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor], given: Arguments, size: int
) -> tuple[int, ...]:
    """As `_shares` of the outputs; of the inputs in a functional call, whose output does not exist yet."""
    return _shares(outputs or inputs, given.get("output_split_sizes"), size)
