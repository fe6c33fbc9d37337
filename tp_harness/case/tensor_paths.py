"""The tensors in what a module takes, returns and keeps, each with its path: `past.3.key`.

They are found in tuples, lists, dicts, dataclasses, and attributes of objects such as a cache of a library. torch's
pytree knows neither a dataclass nor an object that nobody has registered.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch

from ..libraries.torch_private import MODULE_INTERNALS
from ..results.tensor_names import OUTPUT, STATE
from .module_state import holds_state

Change = Callable[[str, torch.Tensor], torch.Tensor]  # (name, tensor) -> what is used in its place


def results_in(value: Any, *, needed: bool = True) -> Iterator[tuple[str, torch.Tensor]]:
    """What a call returned, as tensors of any shape and dtype with names such as `output.0` or `output.past.3.key`.

    A number counts as a tensor of no dimension; None and text are left out.

    Raises:
        TypeError: there is no tensor, and one is `needed`.
    """
    whole = (value,) if isinstance(value, (torch.Tensor, int, float, complex)) else value
    found = list(tensors_in(whole, OUTPUT.rstrip("."), numbers=True))
    if needed and not any(True for _ in tensors_in(whole, "")):
        raise TypeError(f"the module returned a {type(value).__name__} without a tensor; tensors are needed")
    return iter(found)


def state_of(module: Any, patterns: Sequence[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a module that patterns (as `layers.*.cache`) name: parameters, buffers, and what attributes hold.

    Any shape and dtype, by names such as `state.layers.0.cache`; in the order of submodules.
    """
    if not patterns:
        return
    for prefix, part in module.named_modules():
        own = {name: x for name, x in vars(part).items() if name not in MODULE_INTERNALS and name != "_buffers"}
        kept = {**dict(part.named_parameters(recurse=False)), **dict(part.named_buffers(recurse=False)), **own}
        for name, x in tensors_in(kept, prefix):
            if any(fnmatchcase(name, pattern) for pattern in patterns):
                yield f"{STATE}{name}", x


def tensors_in(value: Any, name: str, *, numbers: bool = False) -> Iterator[tuple[str, Any]]:
    """Every tensor in a value, any shape and dtype, with its path after `name`; with `numbers`, those as tensors."""
    return _tensors_in(value, name, numbers, frozenset())


def _tensors_in(value: Any, name: str, numbers: bool, above: frozenset[int]) -> Iterator[tuple[str, Any]]:
    if isinstance(value, torch.Tensor):
        yield name, value
    elif numbers and isinstance(value, (int, float, complex)):
        yield name, torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else None)
    elif id(value) not in above:  # an object may hold itself
        for key, child in children(value):
            yield from _tensors_in(child, f"{name}.{key}" if name else str(key), numbers, above | {id(value)})


def children(value: Any) -> Iterator[tuple[Any, Any]]:
    """The parts of a value, each with its key, position or attribute."""
    if isinstance(value, Mapping):
        yield from value.items()
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        yield from zip(value._fields, value, strict=True)
    elif isinstance(value, (tuple, list)):
        yield from enumerate(value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from ((field.name, getattr(value, field.name, None)) for field in dataclasses.fields(value))
    elif holds_state(value):
        yield from vars(value).items()


def changed_in(value: Any, name: str, change: Change) -> Any:
    """The value with other tensors, any shape; containers are new, so that what a module does to them is not kept."""
    if isinstance(value, torch.Tensor):
        return change(name, value)
    if type(value) is dict:
        return {key: changed_in(x, f"{name}.{key}", change) for key, x in value.items()}
    if type(value) in (tuple, list):
        return type(value)(changed_in(x, f"{name}.{i}", change) for i, x in enumerate(value))
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(changed_in(x, f"{name}.{key}", change) for key, x in children(value)))
    memo = {id(x): change(path, x) for path, x in tensors_in(value, name)}
    return copy.deepcopy(value, memo) if memo else value
