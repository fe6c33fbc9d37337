"""Reading a config.json: the public gpt-oss numbers, and nothing that this tool would silently compute differently.

Both kinds are read, Hugging Face's and the original one. No torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .config import PRESETS, RMS_NORM_EPS, ModelConfig
from .errors import UnknownNameError, UsageError

_MOST_BYTES = 1 << 24  # a config.json has a few kilobytes
_LAYER_TYPES = ("sliding_attention", "full_attention")  # of even and of odd layers

_FROM_HUGGING_FACE = {
    "num_hidden_layers": "num_hidden_layers",
    "num_local_experts": "num_experts",
    "num_experts": "num_experts",
    "num_experts_per_tok": "experts_per_token",
    "experts_per_token": "experts_per_token",
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "swiglu_limit": "swiglu_limit",
    "head_dim": "head_dim",
    "num_attention_heads": "num_attention_heads",
    "num_key_value_heads": "num_key_value_heads",
    "sliding_window": "sliding_window",
    "initial_context_length": "initial_context_length",
    "rope_theta": "rope_theta",
    "rope_scaling_factor": "rope_scaling_factor",
    "rope_ntk_alpha": "rope_ntk_alpha",
    "rope_ntk_beta": "rope_ntk_beta",
}
_FROM_ROPE_SCALING = {
    "factor": "rope_scaling_factor",
    "beta_slow": "rope_ntk_alpha",
    "beta_fast": "rope_ntk_beta",
    "original_max_position_embeddings": "initial_context_length",
    "rope_theta": "rope_theta",
}
_MUST_BE_GIVEN = ("num_hidden_layers", "num_experts", "vocab_size", "hidden_size", "intermediate_size")


# What the modules compute; a file may say it, but not otherwise.
_FIXED = {
    "model_type": "gpt_oss",
    "rms_norm_eps": RMS_NORM_EPS,
    "hidden_act": "silu",
    "attention_bias": True,
    "tie_word_embeddings": False,
}
_FIXED_ROPE = {"rope_type": "yarn", "type": "yarn", "truncate": False}


def load_model_config(name_or_path: str) -> ModelConfig:
    """A preset by name, or the gpt-oss numbers of a Hugging Face (or original gpt-oss) config.json.

    Raises:
        UnknownNameError: neither a preset nor a .json path.
        UsageError: the file cannot be read, is no JSON object, lacks a dimension, gives one twice with different
            values, or describes another kind of model.
    """
    if name_or_path in PRESETS:
        return PRESETS[name_or_path]
    if not name_or_path.endswith(".json"):
        raise UnknownNameError("model", name_or_path, (*PRESETS, "path/to/config.json"))
    values = _read_json_object(Path(name_or_path))
    try:
        return _model(values)
    except UsageError as error:
        raise UsageError(f"{name_or_path}: {error}") from None


def _model(values: dict[str, Any]) -> ModelConfig:
    scaling = _rope_scaling(values)
    _check_fixed(values, _FIXED)
    _check_fixed(scaling, _FIXED_ROPE)
    chosen = _chosen(values, _FROM_HUGGING_FACE, {})
    chosen = _chosen(scaling, _FROM_ROPE_SCALING, chosen)
    missing = [name for name in _MUST_BE_GIVEN if name not in chosen]
    if missing:
        raise UsageError(f"{', '.join(missing)} not given; is it a gpt-oss config.json?")
    model = ModelConfig(**{ours: value for ours, (_, value) in chosen.items()})
    _check_layer_types(values.get("layer_types"), model.num_hidden_layers)
    return model


def _rope_scaling(values: Mapping[str, Any]) -> dict[str, Any]:
    """The object of the older key or of the newer one."""
    given = {name: values[name] for name in ("rope_scaling", "rope_parameters") if values.get(name) is not None}
    for name, scaling in given.items():
        if not isinstance(scaling, dict):
            raise UsageError(f"{name} is {scaling!r:.60}; an object of numbers is needed.")
    if len(given) == 2 and given["rope_scaling"] != given["rope_parameters"]:
        raise UsageError("rope_scaling and rope_parameters differ; keep one.")
    return next(iter(given.values()), {})


def _chosen(
    values: Mapping[str, Any], names: Mapping[str, str], chosen: Mapping[str, tuple[str, Any]]
) -> dict[str, tuple[str, Any]]:
    """Our name -> (their name, value); two of their names for one of ours must agree."""
    result = dict(chosen)
    for theirs, ours in names.items():
        if theirs not in values:
            continue
        before, value = result.setdefault(ours, (theirs, values[theirs]))
        if before != theirs and value != values[theirs]:
            raise UsageError(
                f"{before} is {value!r:.60} and {theirs} is {values[theirs]!r:.60}, but they mean the same; keep one."
            )
    return result


def _check_fixed(values: Mapping[str, Any], fixed: Mapping[str, Any]) -> None:
    for name, value in fixed.items():
        if name in values and values[name] != value:
            raise UsageError(f"{name} is {values[name]!r:.60}; gpt-oss has {value!r}, and this tool knows no other.")


def _check_layer_types(types: object, layers: int) -> None:
    """Which layers have a sliding window is not read but known: the even ones."""
    if types is None:
        return
    if not isinstance(types, list) or len(types) < layers:
        raise UsageError(f"layer_types is {types!r:.60}; a list of {layers} is needed, one for each layer.")
    for layer, kind in enumerate(types[:layers]):
        if kind != _LAYER_TYPES[layer % 2]:
            raise UsageError(
                f"layer_types says that layer {layer} has {kind!r:.60}; gpt-oss has {_LAYER_TYPES[layer % 2]!r} there, "
                "and this tool knows no other."
            )


def _read_json_object(path: Path) -> dict[str, Any]:
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise UsageError(f"cannot read {path}: not a regular file.")  # a pipe would be waited for
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise UsageError(f"{path} is longer than {_MOST_BYTES} bytes; a config.json has a few thousand.")
        values = json.loads(content.decode("utf-8"), object_pairs_hook=_unique)
    except UsageError as error:
        raise UsageError(f"{path}: {error}" if str(path) not in str(error) else str(error)) from None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:  # ValueError: neither UTF-8 nor JSON, or a number of 5000 digits
        raise UsageError(f"{path} is not JSON: {error}.") from None
    if not isinstance(values, dict):
        raise UsageError(f"{path} holds a JSON {type(values).__name__}; an object is needed.")
    return values


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object in which no name stands twice: JSON's readers would silently take the last."""
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise UsageError(f"{name} is given twice, as {values[name]!r:.60} and {value!r:.60}; keep one.")
        values[name] = value
    return values
