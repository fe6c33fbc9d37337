"""What is taken from torch beside its documented interface. torchelastic_private.py has the parts of its launcher."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from . import Library
from .torch_handles import unseen

TORCH = Library(name="torch", file="torch_private.py", seen=("2.9.0", "2.13.0"))

NO_PROCESS_GROUP = "Default process group has not been initialized"  # begins torch's message when there is none
EXTRA_STATE: str = TORCH.part("torch.nn.modules.module:_EXTRA_STATE_KEY_SUFFIX")  # ends a name in a state_dict
# What every module has among its attributes: hooks, parameters and submodules. Buffers and the mode are its state.
MODULE_INTERNALS = frozenset(vars(nn.Module())) - {"_buffers", "training"}


class DispatchMode(TORCH.part("torch.utils._python_dispatch:TorchDispatchMode")):  # type: ignore[misc]
    """A mode whose `__torch_dispatch__` is called for every operation of torch's dispatcher in its `with` block."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False, for torch 2.13: its default, True, imports torch._dynamo, which takes a second per rank."""
        return False


def without_modes() -> AbstractContextManager[Any]:
    """Keep every DispatchMode from seeing what is called inside the `with` block."""
    disabled: AbstractContextManager[Any] = TORCH.part("torch.utils._python_dispatch:_disable_current_modes")()
    return disabled


def function_modes() -> int:
    """How many TorchFunctionModes see what is called here."""
    return int(torch._C._len_torch_function_stack())  # asked for at every operation


def without_function_modes() -> AbstractContextManager[Any]:
    """Keep every TorchFunctionMode from seeing what is called inside the `with` block."""
    disabled: AbstractContextManager[Any] = TORCH.part("torch._C:DisableTorchFunction")()
    return disabled


def storage_reference(x: torch.Tensor) -> Any:
    """A weak reference to the storage of a tensor of any shape: while it lives, no other storage gets the same address.

    `expired()` says whether nothing else holds the storage.
    """
    return _weak_storage()(x.untyped_storage())


@cache
def _weak_storage() -> Any:
    return TORCH.part("torch.multiprocessing.reductions:StorageWeakRef")


def storage_id(x: torch.Tensor) -> int:
    """The address of the storage of a tensor of any shape, which views share."""
    return int(x.untyped_storage()._cdata)  # asked for at every operation: without the time that `part` takes


@cache
def argument_names(operation: Any) -> tuple[str, ...]:
    """The names of the arguments of an operation of torch's dispatcher, in their order."""
    return tuple(argument.name for argument in TORCH.part("torch._ops:OpOverload._schema", operation).arguments)


def named_arguments(operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The arguments of a call of an operation of torch's dispatcher, by name."""
    return dict(zip(argument_names(operation), args, strict=False)) | dict(kwargs or {})


@cache
def operation_name(operation: Any) -> str:
    """The name of an operation of the dispatcher without its namespace and overload: `add_`."""
    name: str = TORCH.part("torch._ops:OpOverload._schema", operation).name
    return name.partition("::")[2]


def arrived_now(x: torch.Tensor) -> torch.Tensor:
    """A result of a functional collective, of any shape, that was taken below its own type; complete."""
    done: torch.Tensor = torch.ops._c10d_functional.wait_tensor(x)
    return done


@cache
def is_composite(operation: Any) -> bool:
    """Whether an operation is made of others, which torch names by itself (`decompose`)."""
    has: Any = TORCH.part("torch._C:_dispatch_has_kernel_for_dispatch_key")
    return bool(has(operation.name(), "CompositeImplicitAutograd"))


def decomposed(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What an operation gives that calls others for all its work: it calls them. NotImplemented if it does not.

    An operation on lists of tensors calls another for each one.
    """
    if is_composite(operation):
        return operation.decompose(*args, **kwargs)
    key: Any = TORCH.part("torch._C:DispatchKey.CPU")
    keys: Any = TORCH.part("torch._C:DispatchKeySet")(key)
    return TORCH.part("torch._ops:OpOverload.redispatch", operation)(keys, *args, **kwargs)


@cache
def writes(operation: Any) -> bool:
    """Whether an operation writes to a tensor that it is given."""
    return bool(TORCH.part("torch._ops:OpOverload._schema", operation).is_mutable)


@cache
def gives_views(operation: Any) -> bool:
    """Whether an operation that writes nothing may return a view of a tensor that it is given."""
    schema = TORCH.part("torch._ops:OpOverload._schema", operation)
    return any(argument.alias_info for argument in schema.arguments)


def written(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[torch.Tensor]:
    """The tensors of a call, of any shape, that the operation writes to."""
    schema = TORCH.part("torch._ops:OpOverload._schema", operation)
    given = named_arguments(operation, args, kwargs)
    names = [a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    return [x for name in names for x in leaves(given.get(name)) if isinstance(x, torch.Tensor)]


def decomposition(operation: Any) -> Callable[..., Any] | None:
    """What computes an operation by others, by torch's own table; None where it has no such entry.

    The table takes a second to import, so that it is asked for last.
    """
    table: dict[Any, Callable[..., Any]] = TORCH.part("torch._decomp:decomposition_table")
    return table.get(operation)


def flop_formulas() -> dict[Any, Callable[..., int]]:
    """By operation of torch's dispatcher, the function that counts a call's floating-point operations."""
    return dict(TORCH.part("torch.utils.flop_counter:flop_registry"))


def leaves(tree: object) -> list[Any]:
    """The values in nested lists, tuples and dicts, in their order."""
    return torch.utils._pytree.tree_leaves(tree)  # asked for at many operations


def tree_map(function: Callable[[Any], Any], tree: Any) -> Any:
    """The same nested lists, tuples and dicts with `function` of each value."""
    return torch.utils._pytree.tree_map(function, tree)


def apply_to_tensors(module: nn.Module, function: Callable[[torch.Tensor], torch.Tensor]) -> nn.Module:
    """Replace every parameter and buffer (any shape) of a module by `function` of it; returns the module."""
    applied: nn.Module = TORCH.part("torch.nn:Module._apply", module)(function)
    return applied


def arrived(x: Any) -> torch.Tensor:
    """The result of a functional collective, of any shape, once it is complete; any other tensor as it is.

    The result's type is recognised by its name, because to import it takes a second.
    """
    own: torch.Tensor = x.wait() if type(x).__name__ == "AsyncCollectiveTensor" else x
    return own


def split_factor(placement: Any) -> int | None:
    """Of a DTensor's placement that cuts fused blocks each by itself, how many there are; None of any other."""
    strided = TORCH.part("torch.distributed.tensor.placement_types:_StridedShard")
    return int(placement.split_factor) if isinstance(placement, strided) else None


def group_named(name: str) -> dist.ProcessGroup:
    """The process group that the dispatcher calls by this name."""
    group: dist.ProcessGroup = TORCH.part("torch.distributed.distributed_c10d:_resolve_process_group")(name)
    return group


def process_group(group: Any) -> dist.ProcessGroup:
    """A process group that an operation of the dispatcher is given: boxed, by name, or itself."""
    if isinstance(group, torch.ScriptObject):
        group = dist.ProcessGroup.unbox(group)
    return group_named(group) if isinstance(group, str) else group


def wait_for(work: Any) -> None:
    """Wait until a collective is complete, whose handle an operation of the dispatcher returned."""
    unseen("wait", unboxed(work))


def is_complete(work: Any) -> bool:
    """Whether that collective is complete, as far as anybody has waited for it."""
    return bool(unseen("is_completed", unboxed(work)))


def unboxed(work: Any) -> dist.Work:
    """The handle of a collective that an operation of the dispatcher returned, the object that a module gets."""
    return TORCH.part("torch.distributed:Work").unbox(work) if isinstance(work, torch.ScriptObject) else work


def reduction_of_caller() -> str:
    """The name of the reduction that is being called, `sum`; "" if none is.

    The object that torch's dispatcher is given has no name. The options that torch's calling function made, a local
    variable, have it.
    """
    frame = sys._getframe()
    while frame := frame.f_back:  # type: ignore[assignment]
        options: Any = frame.f_locals.get("opts") if frame.f_globals is vars(dist.distributed_c10d) else None
        if hasattr(options, "reduceOp"):
            return str(options.reduceOp.op.name).lower()
    return ""


def group_count() -> int:
    """How many process groups there are, the default group included."""
    return len(_all_groups())


def _all_groups() -> dict[Any, tuple[str, Any]]:
    """Every process group, the name of its backend, and its store."""
    groups: dict[Any, tuple[str, Any]] = TORCH.part("torch.distributed.distributed_c10d:_world.pg_map")
    return groups


def stands_in() -> bool:
    """Whether the default group is one that `stand_in_groups` made."""
    return dist.is_initialized() and _all_groups()[dist.group.WORLD][0] == "fake"


@contextmanager
def stand_in_groups(size: int) -> Iterator[None]:
    """Be rank 0 of a default group of `size` ranks without the others: its collectives return and compute nothing.

    A group asked for with backend "gloo" would wait for the other ranks; it gets torch's backend "fake" too. To do so,
    torch's function that makes every group is replaced; who asks for the group's backend is told "gloo".
    """
    store = TORCH.part("torch.testing._internal.distributed.fake_pg:FakeStore")()  # its module registers "fake"
    make = TORCH.part("torch.distributed.distributed_c10d:_new_process_group_helper")
    package: Any = dist
    c10d: Any = dist.distributed_c10d
    ask = c10d.get_backend

    def made(size: int, rank: int, ranks: list[int], backend: object, *rest: Any, **named: Any) -> Any:
        return make(size, rank, ranks, str(backend).replace("gloo", "fake"), *rest, **named)

    def asked(*group: Any, **named: Any) -> str:
        return str(ask(*group, **named)).replace("fake", "gloo")

    dist.init_process_group("fake", rank=0, world_size=size, store=store)
    c10d._new_process_group_helper, c10d.get_backend, package.get_backend = made, asked, asked
    try:
        yield
    finally:
        c10d._new_process_group_helper, c10d.get_backend, package.get_backend = make, ask, ask
        dist.destroy_process_group()


def give_threads_groups_of_their_own() -> None:
    """Give every thread of this process a default group of its own from now on, as torch's own tests do."""
    TORCH.part("torch.testing._internal.distributed.multi_threaded_pg:_install_threaded_pg")()
    TORCH.part("torch._C._distributed_c10d:_set_thread_isolation_mode")(True)
