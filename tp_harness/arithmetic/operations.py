"""The operations of torch's dispatcher: the rule of each in exact arithmetic, and what its schema says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from ..libraries import torch_private

aten = torch.ops.aten
Rule = Callable[..., Any]  # (mode, operation, *args, **kwargs) -> what the operation returns
RULES: dict[Any, Rule] = {}  # by operation, with all its overloads or one of them
PAIRS: dict[Any, Callable[..., Any]] = {}  # of complex tensors: (mode, *args, **kwargs) -> what the operation returns


def named(names: str) -> frozenset[Any]:
    """The operations of torch with these names, of those that this version of torch has."""
    return frozenset(getattr(aten, name) for name in names.split(" ") if hasattr(aten, name))


def rule(*operations: Any) -> Callable[[Rule], Rule]:
    """Make a function the rule of operations."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(operations, function))
        return function

    return register


# These read no element of what they are given.
_OF_SHAPE = named(
    "new_empty new_zeros new_ones new_full zeros_like ones_like empty_like full_like new_empty_strided is_same_size "
    "sym_size sym_stride sym_numel sym_storage_offset _has_same_storage_numel"
)
_UNWRITTEN = named("empty empty_like empty_strided empty_permuted new_empty new_empty_strided")
_COLLECTIVES = ("c10d", "_c10d_functional", "c10d_functional")
_KEEP_ELEMENTS = ("detach", "requires_grad")  # in-place operations that write no element
_GROWING = ("resize", "resize_as", "set")  # their new elements are uninitialised memory, or another's


@dataclass(frozen=True)
class Operation:
    """What is known of one overload of an operation.

    `base` is its name without the underscore of the in-place one; `functional` the operation that returns what this one
    writes, None if there is none.
    """

    name: str
    base: str
    rule: Rule | None
    collective: bool
    of_shape: bool
    unwritten: bool
    random: bool
    growing: bool
    foreign: bool
    composite: bool
    each: bool
    writes: bool
    keeps: bool
    functional: Any
    views: bool
    pointwise: bool


@cache
def looked_up(func: Any) -> Operation:
    """What is known of an operation, an overload."""
    packet, name = func.overloadpacket, torch_private.operation_name(func)
    base = name.removesuffix("_")
    writes = torch_private.writes(func)
    in_place = name != base
    return Operation(
        name=name,
        base=base,
        rule=RULES.get(func.namespace) if func.namespace in _COLLECTIVES else RULES.get(func) or RULES.get(packet),
        collective=func.namespace in _COLLECTIVES,
        of_shape=packet in _OF_SHAPE,
        unwritten=packet in _UNWRITTEN,
        random=torch.Tag.nondeterministic_seeded in func.tags,
        growing=in_place and base in _GROWING,
        foreign=packet is aten.lift_fresh,
        composite=torch_private.is_composite(func),
        each=base.startswith("_foreach_"),
        writes=writes,
        keeps=in_place and base in _KEEP_ELEMENTS,
        functional=getattr(aten, base, None) if in_place else packet if writes else None,
        views=torch_private.gives_views(func),
        pointwise=torch.Tag.pointwise in func.tags,
    )


def without_chance(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call that may draw random numbers draws none: dropout that is off, or attention without it."""
    names, given = torch_private.argument_names(func), torch_private.named_arguments(func, args, kwargs)
    off = any(given.get(name) is False for name in ("train", "training"))
    return off or ("dropout_p" in names and not given.get("dropout_p")) or ("p" in names and given.get("p") == 0)
