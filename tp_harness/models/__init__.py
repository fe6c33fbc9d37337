"""The model families that the harness knows. To add one: a folder beside this file, and its name here. No torch."""

from __future__ import annotations

import importlib
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import UnknownNameError, UsageError
from .config_file import read_json_object
from .family import Family

NAMES = ("gpt_oss",)
SMALL = 512  # features up to which a model only exists to be verified


@cache
def families() -> tuple[Family, ...]:
    """All of them; the first one's models are the defaults of commands."""
    return tuple(importlib.import_module(f".{name}", __name__).FAMILY for name in NAMES)


def find_family(name: str) -> Family:
    """The family of that name."""
    return families()[NAMES.index(name)]


def family_of(model: Any) -> Family:
    """The family whose `config` a model is."""
    return next(each for each in families() if isinstance(model, each.config))


def presets() -> dict[str, Any]:
    """All models by name."""
    return {name: model for each in families() for name, model in each.presets.items()}


def knowledge() -> tuple[Any, ...]:
    """What diagnosis knows of each family's modules (diagnosis/signature.py), of those that have it."""
    return tuple(known for each in families() if (known := each.knowledge()) is not None)


def is_layered(component: str) -> bool:
    """Whether --layer is for a component of this name, in a family that has one."""
    return any(component in each.layered for each in families())


def is_whole(component: str) -> bool:
    """Whether a component of this name has all layers, in a family that has one."""
    return any(each.has_all_layers(component) for each in families())


def real_models() -> dict[str, Any]:
    """The models that are used; those of up to SMALL features only exist to be verified."""
    return {name: model for name, model in presets().items() if model.hidden_size > SMALL}


def load_model(name_or_path: str) -> Any:
    """A model by name, or that of a config.json.

    Raises:
        UnknownNameError: neither a name nor a path that ends in .json.
        UsageError: the file cannot be read, or holds a model of no family.
    """
    if name_or_path in presets():
        return presets()[name_or_path]
    if not name_or_path.endswith(".json"):
        raise UnknownNameError("model", name_or_path, (*presets(), "path/to/config.json"))
    values = read_json_object(Path(name_or_path))
    said = (each for each in families() if each.model_type == values.get("model_type"))
    try:
        return next(said, families()[0]).read_config(values)  # the first one refuses what is none's
    except UsageError as error:
        raise UsageError(f"{name_or_path}: {error}") from None
