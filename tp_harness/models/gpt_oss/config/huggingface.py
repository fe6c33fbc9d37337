"""Reading a config.json: the public gpt-oss numbers, and nothing that this tool would silently compute differently.

Both kinds are read: Hugging Face's as transformers 5 reads it, and the original one, which holds nothing but
ModelConfig's own names. No torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ....errors import UsageError
from . import RMS_NORM_EPS, SWIGLU_ALPHA, ModelConfig
from .rope_parameters import NO_OTHER, read_rope

_LAYER_TYPES = ("sliding_attention", "full_attention")  # of even and of odd layers

# transformers' name -> ours
_FROM_HUGGING_FACE = {
    "num_hidden_layers": "num_hidden_layers",
    "num_local_experts": "num_experts",
    "num_experts": "num_experts",
    "num_experts_per_tok": "experts_per_token",
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "swiglu_limit": "swiglu_limit",
    "head_dim": "head_dim",
    "num_attention_heads": "num_attention_heads",
    "num_key_value_heads": "num_key_value_heads",
    "sliding_window": "sliding_window",
}
# Our names that Hugging Face's files may hold too, as the published ones do -> what transformers reads instead.
_NOT_READ = {
    "experts_per_token": "num_experts_per_tok",
    "initial_context_length": "original_max_position_embeddings",
    "rope_scaling_factor": "factor",
    "rope_ntk_alpha": "beta_slow",
    "rope_ntk_beta": "beta_fast",
}
_MUST_BE_GIVEN = ("num_hidden_layers", "num_experts", "vocab_size", "hidden_size", "intermediate_size")

# What the modules compute; a file may say it, but not otherwise.
_FIXED = {
    "model_type": "gpt_oss",
    "rms_norm_eps": RMS_NORM_EPS,
    "hidden_act": "silu",
    "swiglu_alpha": SWIGLU_ALPHA,
    "attention_bias": True,
    "tie_word_embeddings": False,
    "is_causal": True,
}
# What other models' files say; transformers does not read it for gpt-oss. null is as good as nothing.
_FIXED_ELSEWHERE = {
    "norm_topk_prob": True,
    "scoring_func": "softmax",
    "routed_scaling_factor": 1,
    "n_shared_experts": 0,
    "num_shared_experts": 0,
    "first_k_dense_replace": 0,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "use_sliding_window": True,
    "use_qk_norm": False,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "per_layer_config": {},
    "configuration_files": [],
}


def read_config(values: Mapping[str, Any]) -> ModelConfig:
    """The gpt-oss numbers of a Hugging Face (or original gpt-oss) config.json, whose JSON values are given.

    Raises:
        UsageError: a dimension is missing, or given twice with different values, or it is another kind of model.
    """
    ours = {field.name for field in dataclasses.fields(ModelConfig)}
    read = values if values.keys() <= ours else _read_hugging_face(values)
    missing = [name for name in _MUST_BE_GIVEN if name not in read]
    if missing:
        raise UsageError(f"{', '.join(missing)} not given; is it a gpt-oss config.json?")
    model = ModelConfig(**read)
    _check_layer_types(values.get("layer_types"), model.num_hidden_layers)
    return model


def _read_hugging_face(values: Mapping[str, Any]) -> dict[str, Any]:
    """Our name -> value, as transformers 5 reads the file."""
    _check_one_model(values)
    _check_architectures(values.get("architectures"))
    _check_fixed(values, _FIXED)
    _check_fixed({name: value for name, value in values.items() if value is not None}, _FIXED_ELSEWHERE)
    _check_quantization(values.get("quantization_config"))
    read = {"experts_per_token": ModelConfig.experts_per_token, **_renamed(values), **read_rope(values)}
    for name, theirs in _NOT_READ.items():
        if name in values and name in read and values[name] != read[name]:
            raise UsageError(
                f"{name} is {values[name]!r:.60}, but transformers does not read it and takes {read[name]!r:.60}, from "
                f"{theirs} or by default; give both the same value, or leave {name} out."
            )
    return read


def _renamed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Our name -> value; two of their names for one of ours must agree."""
    result: dict[str, tuple[str, Any]] = {}
    for theirs, ours in _FROM_HUGGING_FACE.items():
        if theirs not in values:
            continue
        before, value = result.setdefault(ours, (theirs, values[theirs]))
        if before != theirs and value != values[theirs]:
            raise UsageError(
                f"{before} is {value!r:.60} and {theirs} is {values[theirs]!r:.60}, but they mean the same; keep one."
            )
    return {ours: value for ours, (_, value) in result.items()}


def _check_one_model(values: Mapping[str, Any]) -> None:
    """A file of several models, such as one for text and one for images, is not read as any of them."""
    for name, value in values.items():
        inner = [key for key in ("model_type", *_MUST_BE_GIVEN) if isinstance(value, dict) and key in value]
        if inner:
            raise UsageError(
                f"{name} describes a model of its own ({inner[0]} {value[inner[0]]!r:.60}); one gpt-oss model is "
                f"needed: write {name}'s own numbers into a file if that is the one."
            )


def _check_architectures(names: object) -> None:
    """Files without a model_type have these."""
    if names and not (isinstance(names, list) and all(str(name).startswith("GptOss") for name in names)):
        raise UsageError(f"architectures is {names!r:.60}; gpt-oss has ['GptOssForCausalLM'], {NO_OTHER}.")


def _check_quantization(quantization: object) -> None:
    """MXFP4 packs the weights alone; others round activations too."""
    method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
    if method not in (None, "mxfp4"):
        raise UsageError(
            f"quantization_config.quant_method is {method!r:.60}; gpt-oss has 'mxfp4', {NO_OTHER}: leave "
            "quantization_config out to verify the model without quantization."
        )


def _check_fixed(values: Mapping[str, Any], fixed: Mapping[str, Any]) -> None:
    for name, value in fixed.items():
        if name in values and values[name] != value:
            raise UsageError(f"{name} is {values[name]!r:.60}; gpt-oss has {value!r}, {NO_OTHER}.")


def _check_layer_types(types: object, layers: int) -> None:
    """Which layers have a sliding window is not read but known: the even ones."""
    if types is None:
        return
    if not isinstance(types, list) or len(types) != layers:
        raise UsageError(f"layer_types is {types!r:.60}; a list of {layers} is needed, one for each layer.")
    for layer, kind in enumerate(types):
        if kind != _LAYER_TYPES[layer % 2] and (kind, layer % 2) != ("attention", 1):
            raise UsageError(
                f"layer_types says that layer {layer} has {kind!r:.60}; gpt-oss has {_LAYER_TYPES[layer % 2]!r} there, "
                f"{NO_OTHER}."
            )
