"""The rotary embedding that a Hugging Face config.json describes, read as transformers 5 reads it. No torch.

What gpt-oss's own rotary embedding cannot compute is refused, never approximated.

Sources: transformers 5, modeling_rope_utils.py (convert_rope_params_to_dict, standardize_rope_params,
_compute_yarn_parameters) and models/gpt_oss/configuration_gpt_oss.py (its defaults).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ....config.model import check_number
from ....errors import UsageError

# What transformers takes for a file without rope_scaling and rope_parameters.
_DEFAULT: Mapping[str, Any] = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}
_DEFAULT_THETA = 150000.0
_DEFAULT_LENGTH = 131072  # max_position_embeddings
_TURNS = {"beta_slow": 1.0, "beta_fast": 32.0}
_SCALES = ("factor", "attention_factor", "mscale", "mscale_all_dim")  # what acts in type yarn alone; 1 changes nothing
_ROUNDED = 1e-7  # relative: an attention factor that was stored in float32
NO_OTHER = "and this tool knows no other"


def read_rope(values: Mapping[str, Any]) -> dict[str, Any]:
    """ModelConfig's rotary numbers by our names, those alone that this file says or implies.

    Args:
        values: the whole file.

    Raises:
        UsageError: two spellings that disagree, or a rotary embedding that is not gpt-oss's.
    """
    name, rope = _object(values)
    _check_one_for_all_layers(name, rope)
    _check_whole_heads(values, name, rope)
    numbers = {"rope_theta": _agreed("rope_theta", values, name, rope, _DEFAULT_THETA)}
    if _type(name, rope) == "default":
        return {**numbers, "rope_scaling_factor": 1.0}
    return {**numbers, **_yarn(values, name, rope)}


def _object(values: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """The object of the older key or of the newer one, and which."""
    older, newer = (_given(values, name) for name in ("rope_scaling", "rope_parameters"))
    if "rope_scaling" in values and not older and newer is None:
        raise UsageError(
            f"rope_scaling is {older}, which is plain rotary embedding to transformers 4 and YaRN with factor 32 to "
            'transformers 5; write "rope_parameters": {"rope_type": "default"} for the first, or leave rope_scaling '
            "out for the second."
        )
    if older and newer is not None:
        for key in sorted({*older, *newer}):
            if (key in older) != (key in newer) or older.get(key) != newer.get(key):
                one, other = (f"{x[key]!r:.60}" if key in x else "not given" for x in (older, newer))
                raise UsageError(
                    f"rope_scaling.{key} is {one} and rope_parameters.{key} is {other}; keep one of the two objects."
                )
    if older:
        return "rope_scaling", older
    return "rope_parameters", _DEFAULT if newer is None else newer


def _given(values: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    value = values.get(name)
    if value is not None and not isinstance(value, dict):
        raise UsageError(f"{name} is {value!r:.60}; an object of numbers is needed.")
    return value


def _check_one_for_all_layers(name: str, rope: Mapping[str, Any]) -> None:
    for key, value in rope.items():
        if isinstance(value, dict) or key.endswith("_attention"):
            raise UsageError(
                f"{name}.{key} is {value!r:.60}, numbers of one layer type; gpt-oss has one set for all layers, "
                f"{NO_OTHER}."
            )


def _check_whole_heads(values: Mapping[str, Any], name: str, rope: Mapping[str, Any]) -> None:
    key = "partial_rotary_factor"
    outer = {key: values[key]} if values.get(key) is not None else {}
    inner = {f"{name}.{key}": rope[key]} if key in rope else {}
    for where, share in (outer | inner).items():
        if share != 1:
            raise UsageError(f"{where} is {share!r:.60}; gpt-oss rotates all of a head (1), {NO_OTHER}.")


def _type(name: str, rope: Mapping[str, Any]) -> str:
    """yarn or default, which is without scaling."""
    if "rope_type" in rope and "type" in rope and rope["rope_type"] != rope["type"]:
        raise UsageError(
            f"{name}.rope_type is {rope['rope_type']!r:.60} and {name}.type is {rope['type']!r:.60}, but they mean the "
            "same; keep one."
        )
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("yarn", "default"):
        raise UsageError(
            f"{name}.rope_type is {kind!r:.60}; gpt-oss has 'yarn', and this tool knows that and 'default' alone."
        )
    for key in _SCALES if kind == "default" else ():
        if rope.get(key) not in (None, 1):
            said = "'default'" if {"rope_type", "type"} & rope.keys() else "not given, which means 'default'"
            raise UsageError(
                f"{name}.{key} is {rope[key]!r:.60}, but {name}.rope_type is {said}, which scales nothing; give "
                f"rope_type 'yarn', or leave {key} out."
            )
    return str(kind)


def _agreed(key: str, values: Mapping[str, Any], name: str, rope: Mapping[str, Any], default: Any) -> Any:
    """A number that may stand in the object or beside it."""
    outer = values.get(key)
    if outer is not None and key in rope and rope is not _DEFAULT and outer != rope[key]:
        raise UsageError(
            f"{key} is {outer!r:.60} and {name}.{key} is {rope[key]!r:.60}, but they mean the same; keep one."
        )
    return rope.get(key, values.get(key, default)) if outer is None else outer


def _yarn(values: Mapping[str, Any], name: str, rope: Mapping[str, Any]) -> dict[str, Any]:
    if "factor" not in rope:
        raise UsageError(f"{name}.factor is not given, which rope_type 'yarn' needs; gpt-oss has 32.")
    turns = {key: default if rope.get(key) is None else rope[key] for key, default in _TURNS.items()}
    for key, value in {"factor": rope["factor"], **turns}.items():
        check_number(f"{name}.{key}", value)
    if rope["factor"] < 1:
        raise UsageError(f"{name}.factor is {rope['factor']!r}; 1 or more is needed.")
    if rope.get("truncate", True):
        said = f"{rope['truncate']!r:.60}" if "truncate" in rope else "not given, which transformers takes as true"
        raise UsageError(
            f"{name}.truncate is {said}, the YaRN ramp rounded to whole pairs; gpt-oss has false, {NO_OTHER}: write "
            '"truncate": false if that is meant.'
        )
    _check_attention_factor(name, rope)
    length = values.get("max_position_embeddings", _DEFAULT_LENGTH)
    return {
        "rope_scaling_factor": rope["factor"],
        "rope_ntk_alpha": turns["beta_slow"],
        "rope_ntk_beta": turns["beta_fast"],
        "initial_context_length": _agreed("original_max_position_embeddings", values, name, rope, length),
    }


def _check_attention_factor(name: str, rope: Mapping[str, Any]) -> None:
    """The factor on cos and sin: given, or made of mscale and mscale_all_dim where neither is 0."""
    scale = math.log(rope["factor"])
    ours = 0.1 * scale + 1
    given = {key: rope[key] for key in ("mscale", "mscale_all_dim") if rope.get(key)}
    if rope.get("attention_factor") is not None:
        given = {"attention_factor": rope["attention_factor"]}
    for key, value in given.items():
        check_number(f"{name}.{key}", value)
    theirs = given.get("attention_factor", ours)
    if len(given) == 2:
        theirs = (0.1 * given["mscale"] * scale + 1) / (0.1 * given["mscale_all_dim"] * scale + 1)
    if not math.isclose(theirs, ours, rel_tol=_ROUNDED):
        said = " and ".join(f"{name}.{key} is {value!r:.60}" for key, value in given.items())
        raise UsageError(
            f"{said}, which makes an attention factor of {theirs:.9g}; gpt-oss has 0.1 ln(factor) + 1, here "
            f"{ours:.9g}, {NO_OTHER}."
        )
