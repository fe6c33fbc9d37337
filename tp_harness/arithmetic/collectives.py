"""Rules of torch.distributed: the same collective, once, on shadows and residues together.

Each tensor is given with its rows as a last dimension, so that gathers and scatters along dimension 0 mean the same.
Every floating-point tensor is: a rank whose tensor happens to be constant must make the same call as the others. Sums
of residues are exact and then reduced. A maximum is taken of what all ranks have gathered, by the shadows.
"""

from __future__ import annotations

from fractions import Fraction
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from ..libraries.torch_private import (
    arrived_now,
    is_complete,
    leaves,
    named_arguments,
    operation_name,
    process_group,
    reduction_of_caller,
    tree_map,
    wait_for,
)
from .decisions import decided
from .mode import ExactMode
from .operations import rule
from .residues import numbers

_NO_DATA = ("barrier", "monitored_barrier_", "check_for_nan")
_OUTPUTS = ("output_tensors", "output_tensor", "output_lists", "outputs", "output", "out")
_BOTH = ("tensors", "tensor")  # given and written


def _floating(x: object) -> bool:
    return isinstance(x, torch.Tensor) and x.is_floating_point()


@rule("c10d")
def _c10d(mode: ExactMode, func: Any, *args: Any, **kwargs: Any) -> Any:
    name = operation_name(func)
    given = named_arguments(func, args, kwargs)
    if name in _NO_DATA or not any(map(_floating, leaves(given))):
        return func(*args, **kwargs)
    operation = reduction_of_caller() if "reduce_op" in given else "sum"
    if operation != "sum":
        return _by_gathering(mode, func, name, given, operation)
    pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
    out = func(**{key: _swapped(mode, key, value, pairs) for key, value in given.items()})
    if name == "send":
        mode.memory.keep([buffer for _, buffer in pairs])  # until the message is sent
        return out
    work = out[-1] if isinstance(out, tuple) else out
    written = [x for key in (*_OUTPUTS, *_BOTH) for x in leaves(given.get(key)) if _floating(x)]
    into = [(x, buffer) for x, buffer in pairs if any(x is y for y in written)]
    if name.startswith("recv"):
        for x, buffer in into:
            mode.memory.await_(x, partial(_receive, mode, x, buffer, work))
        return out
    wait_for(work)
    for x, buffer in into:
        mode.memory.write(x, _numbers(mode, buffer))
    first = next(given[key] for key in (*_OUTPUTS, *_BOTH) if key in given)
    return (first, work) if isinstance(out, tuple) else out


def _swapped(mode: ExactMode, key: str, value: Any, pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> Any:
    """An argument with each floating-point tensor as its rows, which are noted beside it in `pairs`."""

    def swap(x: Any) -> Any:
        if not _floating(x):
            return x
        form = (*x.shape, mode.field.rows)
        buffer = torch.empty(form, dtype=torch.float64) if key in _OUTPUTS else _columns(mode, x)
        pairs.append((x, buffer))
        return buffer

    return tree_map(swap, value)


def _columns(mode: ExactMode, x: torch.Tensor) -> torch.Tensor:
    """The numbers of a tensor with the rows last: (*shape, rows), contiguous."""
    return mode.number(x).view(mode.field.rows, *x.shape).movedim(0, -1).clone(memory_format=torch.contiguous_format)


def _numbers(mode: ExactMode, columns: torch.Tensor) -> torch.Tensor:
    return mode.field.reduce_(columns.movedim(-1, 0).clone(memory_format=torch.contiguous_format))


def _receive(mode: ExactMode, x: torch.Tensor, buffer: torch.Tensor, work: Any) -> bool:
    """Take what has arrived; gloo hangs in a second wait, so that the one of the module has to come first."""
    arrived = is_complete(work)
    if arrived:
        mode.memory.write(x, _numbers(mode, buffer))
    return arrived


def _by_gathering(mode: ExactMode, func: Any, name: str, given: dict[str, Any], operation: str) -> Any:
    """An all_reduce whose result is not the sum; any other collective of such kind is not followed."""
    if name != "allreduce_" or operation not in ("max", "min", "product"):
        mode.seen.escape(f"{name} with {operation} has no rule")
        return _on_shadows(mode, func, given)
    group = process_group(given["process_group"])
    for x in given["tensors"]:
        mode.memory.write(x, _combined(mode, operation, _gathered(mode, x, group)))
    return given["tensors"], _finished(func, given)


def _finished(func: Any, given: dict[str, Any]) -> Any:
    """A work that is complete: that of the same call on one number."""
    work = func(**(given | {"tensors": [torch.zeros(1)]}))[-1]
    wait_for(work)
    return work


def _gathered(mode: ExactMode, x: torch.Tensor, group: Any) -> list[torch.Tensor]:
    own = _columns(mode, x)
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, own, group=group)
    return [part.movedim(-1, 0) for part in parts]


def _combined(mode: ExactMode, operation: str, parts: list[torch.Tensor]) -> torch.Tensor:
    out = parts[0]
    for part in parts[1:]:
        if operation == "product":
            out = numbers.multiply(mode.field, out, part)
            continue
        decided(mode, "all_reduce", out, part)
        out = torch.where(part[0] > out[0] if operation == "max" else part[0] < out[0], part, out)
    return out


def _on_shadows(mode: ExactMode, func: Any, given: dict[str, Any]) -> Any:
    held = {id(x): mode.memory.shadow(x).to(torch.float64).clone() for x in leaves(given) if _floating(x)}
    out = func(**tree_map(lambda x: held.get(id(x), x), given))
    wait_for(out[-1] if isinstance(out, tuple) else out)
    for key in (*_OUTPUTS, *_BOTH):
        for x in leaves(given.get(key)):
            if _floating(x):
                mode.memory.write(x, mode.memory.unknown(held[id(x)]))
    return out


@rule("_c10d_functional")
def _functional(mode: ExactMode, func: Any, *args: Any, **kwargs: Any) -> Any:
    name = operation_name(func)
    given = named_arguments(func, args, kwargs)
    if name == "wait_tensor":
        return args[0] if mode.memory.holds(args[0]) else func(*args, **kwargs)
    if not any(map(_floating, leaves(given))):
        return func(*args, **kwargs)
    operation = given.get("reduce_op", "sum")
    whole = "all_reduce" in name and operation in ("max", "min", "product")
    if "p2p" in name or name in ("isend", "irecv") or (operation not in ("sum", "avg") and not whole):
        mode.seen.escape(f"{name} with {operation} has no rule")
        dtype = next(x for x in leaves(given) if _floating(x)).dtype
        return tree_map(partial(_lost, mode, dtype), func(**tree_map(mode.memory.shadow, given)))
    out = _functionally(mode, func, given, whole=whole, average=operation == "avg")
    if not name.endswith(("_", "_out")):
        return out
    into = next(given[key] for key in ("out", "input", "inputs") if key in given)
    for x, y in zip(leaves(into), leaves(out), strict=True):
        mode.memory.write(x, mode.number(y))
    return into


def _lost(mode: ExactMode, dtype: torch.dtype, x: Any) -> Any:
    """A result of a collective on shadows, with unknown residues."""
    return mode.new(mode.memory.unknown(arrived_now(x).double()), dtype) if _floating(x) else x


def _functionally(mode: ExactMode, func: Any, given: dict[str, Any], *, whole: bool, average: bool) -> Any:
    """The results of a functional collective, complete."""
    inputs = next(given[key] for key in ("input", "inputs") if key in given)
    dtypes = iter([x.dtype for x in leaves(inputs)])
    if whole:
        group = process_group(given["group_name"])
        return tree_map(
            lambda x: mode.new(_combined(mode, given["reduce_op"], _gathered(mode, x, group)), next(dtypes)), inputs
        )
    swapped = {key: tree_map(lambda x: _columns(mode, x) if _floating(x) else x, value) for key, value in given.items()}
    swapped |= {"reduce_op": "sum"} if "reduce_op" in given else {}
    share = mode.field.scalar(_share(given) if average else 1)

    def made(x: torch.Tensor) -> torch.Tensor:
        own = _numbers(mode, arrived_now(x))
        return mode.new(numbers.multiply(mode.field, own, share) if average else own, next(dtypes))

    return tree_map(made, func(**swapped))


def _share(given: dict[str, Any]) -> Fraction:
    return Fraction(1, dist.get_world_size(process_group(given["group_name"])))
