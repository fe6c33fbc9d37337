"""From JSON values back to the types of result.py (or any dataclasses made like them); the inverse of `to_json`."""

from __future__ import annotations

import dataclasses
import types
from dataclasses import is_dataclass
from enum import Enum
from functools import cache
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

T = TypeVar("T")
_NOT_FINITE = ("nan", "inf", "-inf")


def from_json(kind: type[T], value: Any) -> T:
    """The inverse of `to_json`: a `kind` made of JSON values, with NaN and infinities as numbers again.

    Fields that the values lack take their defaults, and fields that `kind` lacks are passed over, so that a run of
    another version with the same schema number can be read; a type's `from_older` fills in what has no default.
    Where the type is `Any`, the strings "nan", "inf" and "-inf" count as numbers.

    Raises:
        ValueError: a value of the wrong type, or a field without default is missing; says where and what.
    """
    return cast("T", _restore(kind, value, ""))


def _restore(kind: Any, value: Any, at: str) -> Any:
    if kind is Any:
        return _numbers(value)
    if get_origin(kind) in (Union, types.UnionType):
        (inner,) = (argument for argument in get_args(kind) if argument is not type(None))
        return None if value is None else _restore(inner, value, at)
    if is_dataclass(kind):
        return _restore_fields(kind, _expect(value, dict, at), at)
    if get_origin(kind):
        return _restore_items(get_origin(kind), get_args(kind), value, at)
    return _restore_scalar(kind, value, at)


def _restore_items(origin: Any, arguments: tuple[Any, ...], value: Any, at: str) -> Any:
    if origin is dict:
        items = _expect(value, dict, at).items()
        return {key: _restore(arguments[1], item, f"{at}.{key}") for key, item in items}
    items = _expect(value, list, at)
    kinds = [arguments[0]] * len(items) if origin is list or arguments[-1] is Ellipsis else arguments
    if len(kinds) != len(items):
        raise ValueError(f"{at.lstrip('.')} has {len(items)} items, where {len(kinds)} are needed")
    return origin(_restore(kind, item, f"{at}[{i}]") for i, (kind, item) in enumerate(zip(kinds, items, strict=True)))


def _restore_scalar(kind: type, value: Any, at: str) -> Any:
    if issubclass(kind, Enum):
        return _one_of(kind, value, at)
    return _number(value, at) if kind is float else _expect(value, kind, at)


def _restore_fields(kind: Any, values: dict[str, Any], at: str) -> Any:
    values = getattr(kind, "from_older", dict)(values)
    kinds, required = _fields(kind)
    missing = [name for name in required if name not in values]
    if missing:
        raise ValueError(f"{at.lstrip('.') or 'it'} lacks {', '.join(missing)}")
    return kind(**{name: _restore(kinds[name], values[name], f"{at}.{name}") for name in kinds if name in values})


@cache
def _fields(kind: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The type of each field, and the names of those without a default."""
    fields = [f for f in dataclasses.fields(kind) if f.init]
    hints = get_type_hints(kind)
    without = (f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING)
    return {f.name: hints[f.name] for f in fields}, tuple(without)


def _expect(value: Any, kind: type, at: str) -> Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{at.lstrip('.')} is {value!r:.60}, where {_JSON_NAMES[kind]} is needed")
    return value


_JSON_NAMES = {dict: "an object", list: "an array", str: "a string", int: "a whole number", bool: "true or false"}


def _number(value: Any, at: str) -> float:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number and value not in _NOT_FINITE:
        raise ValueError(f"{at.lstrip('.')} is {value!r:.60}, where a number is needed")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{at.lstrip('.')} has {len(str(value))} digits, where a float is needed") from None


def _one_of(kind: type[Enum], value: Any, at: str) -> Enum:
    choices = [member.value for member in kind]
    if value not in choices:
        raise ValueError(f"{at.lstrip('.')} is {value!r:.60}, where one of {', '.join(choices)} is needed")
    return kind(value)


def _numbers(value: Any) -> Any:
    """Untyped JSON, with what stands for NaN and infinities turned into numbers."""
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    return float(value) if isinstance(value, str) and value in _NOT_FINITE else value
