"""Save what a module holds besides its parameters, and restore it: a module may change it from call to call.

Every object stays the same object and gets its old content: buffers, tensors and random generators in attributes,
lists, dicts and sets of them, and objects of a user's classes, such as a cache that several layers share.

Not covered: what is kept outside the module, such as a global or a class attribute.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..libraries.torch_private import MODULE_INTERNALS
from ..parallel.group import Group

# Packages whose objects are no state: groups, meshes, configurations.
_FOREIGN = ("torch", "tp_harness", "numpy")
Restore = Callable[[], object]


def remembered(module: nn.Module) -> Callable[[], None]:
    """A function that restores what the module holds now; it may be called more than once.

    Tensors of any shape and dtype are copied, and written back in place.
    """
    seen: dict[int, Any] = {}  # by id; the objects live as long as this does, so that no id is used again
    restores = [_of_attributes(part, seen) for part in module.modules()]
    restores += [_of_tensor(own) for own in module.parameters() if not own.requires_grad]  # a cache may be one

    def restore() -> None:
        for one in restores:
            one()

    return restore


def _of_attributes(owner: Any, seen: dict[int, Any]) -> Restore:
    own = vars(owner)
    skipped = MODULE_INTERNALS if isinstance(owner, nn.Module) else frozenset[str]()
    values = {name: value for name, value in own.items() if name not in skipped}
    inner = [_of(value, seen) for value in values.values()]

    def restore() -> None:
        for name in own.keys() - values.keys() - skipped:
            del own[name]
        own.update(values)
        for one in inner:
            one()

    return restore


def _of(value: Any, seen: dict[int, Any]) -> Restore:
    """A function that restores an object's content."""
    if id(value) in seen or isinstance(value, (nn.Module, Group)):
        return _nothing
    seen[id(value)] = value
    if isinstance(value, torch.Tensor):
        return _of_tensor(value)
    if isinstance(value, torch.Generator):
        state = value.get_state()
        return lambda: value.set_state(state)
    if isinstance(value, (dict, list, set, deque)):
        return _of_container(value, seen)
    if isinstance(value, tuple):
        parts = [_of(item, seen) for item in value]
        return lambda: [one() for one in parts]
    return _of_attributes(value, seen) if holds_state(value) else _nothing


def holds_state(value: Any) -> bool:
    """Whether it is an object of a user's class, whose attributes may be tensors; a module or a function is none."""
    foreign = type(value).__module__.partition(".")[0] in _FOREIGN
    return hasattr(value, "__dict__") and not (foreign or callable(value))


def _of_tensor(value: torch.Tensor) -> Restore:
    numbers, form = value.detach().clone(), (value.storage_offset(), value.shape, value.stride())

    def restore() -> None:
        with torch.no_grad():
            if value.shape != numbers.shape:  # resized in place
                value.set_(value.untyped_storage(), *form)
            value.copy_(numbers)

    return restore


def _of_container(value: Any, seen: dict[int, Any]) -> Restore:
    held = value.copy()
    inner = [_of(item, seen) for item in (held.values() if isinstance(held, dict) else held)]

    def restore() -> None:
        value.clear()
        (value.update if isinstance(value, (dict, set)) else value.extend)(held)
        for one in inner:
            one()

    return restore


def _nothing() -> None:
    """The restore of what has no content."""
