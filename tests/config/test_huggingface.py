"""config.json files of both kinds: every number is used, and every mistake is one sentence."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from published import HUGGING_FACE, ORIGINAL

from tp_harness.errors import UnknownNameError, UsageError
from tp_harness.models import load_model
from tp_harness.models.gpt_oss.config import PRESETS, ModelConfig

PATHS = {  # every number of a Hugging Face file that is read: where it is, our field, another value
    "num_hidden_layers": ("num_hidden_layers", 6),
    "num_local_experts": ("num_experts", 6),
    "experts_per_token": ("experts_per_token", 2),
    "vocab_size": ("vocab_size", 640),
    "hidden_size": ("hidden_size", 640),
    "intermediate_size": ("intermediate_size", 640),
    "swiglu_limit": ("swiglu_limit", 5.5),
    "head_dim": ("head_dim", 32),
    "num_attention_heads": ("num_attention_heads", 32),
    "num_key_value_heads": ("num_key_value_heads", 4),
    "sliding_window": ("sliding_window", 64),
    "rope_theta": ("rope_theta", 10000.0),
    "rope_scaling.factor": ("rope_scaling_factor", 16.0),
    "rope_scaling.beta_slow": ("rope_ntk_alpha", 2.0),
    "rope_scaling.beta_fast": ("rope_ntk_beta", 16.0),
    "rope_scaling.original_max_position_embeddings": ("initial_context_length", 2048),
}


def with_value(path: str, value: object) -> dict[str, Any]:
    """The Hugging Face file with one value replaced; both spellings of experts per token."""
    values = copy.deepcopy(HUGGING_FACE)
    *parents, leaf = path.split(".")
    inner = values[parents[0]] if parents else values
    inner[leaf] = value
    if leaf == "original_max_position_embeddings":
        values["initial_context_length"] = value
    if leaf == "experts_per_token":
        values["num_experts_per_tok"] = value
    if leaf == "num_hidden_layers":
        values["layer_types"] = None
    return values


def written(folder: Path, values: object) -> str:
    """The path of a JSON file with these values."""
    path = folder / "config.json"
    path.write_text(json.dumps(values))
    return str(path)


@pytest.mark.parametrize("values", [HUGGING_FACE, ORIGINAL], ids=["hugging_face", "original"])
def test_config_json_of_either_kind_is_the_preset(tmp_path: Path, values: dict[str, Any]) -> None:
    assert load_model(written(tmp_path, values)) == PRESETS["gpt-oss-20b"]


def test_rope_parameters_of_newer_files_are_read(tmp_path: Path) -> None:
    values = {key: value for key, value in HUGGING_FACE.items() if key not in ("rope_scaling", "rope_theta")}
    values["rope_parameters"] = {**HUGGING_FACE["rope_scaling"], "rope_theta": 99000.0, "factor": 8.0}
    expected = dataclasses.replace(PRESETS["gpt-oss-20b"], rope_theta=99000.0, rope_scaling_factor=8.0)
    assert load_model(written(tmp_path, values)) == expected


@pytest.mark.parametrize("path", PATHS)
def test_every_number_of_a_config_json_is_used(tmp_path: Path, path: str) -> None:
    field, value = PATHS[path]
    model = load_model(written(tmp_path, with_value(path, value)))
    assert model == dataclasses.replace(PRESETS["gpt-oss-20b"], **{field: value})
    assert model != PRESETS["gpt-oss-20b"]


def test_every_field_can_come_from_a_config_json() -> None:
    assert {field for field, _ in PATHS.values()} == {field.name for field in dataclasses.fields(ModelConfig)}
    assert set(ORIGINAL) == {field.name for field in dataclasses.fields(ModelConfig)}


WRONG: list[tuple[str, object, str]] = [  # of rotary numbers: test_config_rope.py
    ("model_type", "llama", "{}: model_type is 'llama'; gpt-oss has 'gpt_oss', and this tool knows no other."),
    ("rms_norm_eps", 1e-6, "{}: rms_norm_eps is 1e-06; gpt-oss has 1e-05, and this tool knows no other."),
    ("hidden_size", float("nan"), "{}: hidden_size is nan; a positive integer is needed."),
    ("hidden_size", -2880, "{}: hidden_size is -2880; a positive integer is needed."),
    ("hidden_size", 2880.0, "{}: hidden_size is 2880.0; a positive integer is needed."),
    ("hidden_size", "2880", "{}: hidden_size is '2880'; a positive integer is needed."),
    ("hidden_size", True, "{}: hidden_size is True; a positive integer is needed."),
    ("hidden_size", [2880], "{}: hidden_size is [2880]; a positive integer is needed."),
    ("num_hidden_layers", 0, "{}: num_hidden_layers is 0; a positive integer is needed."),
    ("swiglu_limit", float("inf"), "{}: swiglu_limit is inf; a positive number below 2**40 is needed."),
    ("rope_theta", False, "{}: rope_theta is False; a positive number is needed."),
    ("head_dim", 63, "{}: head_dim 63 is odd; rotary embedding rotates pairs."),
    ("hidden_act", "gelu", "{}: hidden_act is 'gelu'; gpt-oss has 'silu', and this tool knows no other."),
    ("tie_word_embeddings", True, "{}: tie_word_embeddings is True; gpt-oss has False, and this tool knows no other."),
    ("num_experts", 7, "{}: num_local_experts is 32 and num_experts is 7, but they mean the same; keep one."),
    (
        "layer_types",
        ["full_attention"] * 24,
        "{}: layer_types says that layer 0 has 'full_attention'; gpt-oss has "
        "'sliding_attention' there, and this tool knows no other.",
    ),
    ("layer_types", "all", "{}: layer_types is 'all'; a list of 24 is needed, one for each layer."),
    ("layer_types", ["sliding_attention"], "{}: layer_types is ['sliding_attention']; a list of 24 is needed, one for "
     "each layer."),
    (
        "architectures",
        ["MixtralForCausalLM"],
        "{}: architectures is ['MixtralForCausalLM']; gpt-oss has ['GptOssForCausalLM'], and this tool knows no other.",
    ),
    ("swiglu_alpha", 1.0, "{}: swiglu_alpha is 1.0; gpt-oss has 1.702, and this tool knows no other."),
    ("attention_bias", False, "{}: attention_bias is False; gpt-oss has True, and this tool knows no other."),
    ("is_causal", False, "{}: is_causal is False; gpt-oss has True, and this tool knows no other."),
    ("norm_topk_prob", False, "{}: norm_topk_prob is False; gpt-oss has True, and this tool knows no other."),
    ("scoring_func", "sigmoid", "{}: scoring_func is 'sigmoid'; gpt-oss has 'softmax', and this tool knows no other."),
    ("per_layer_config", {"0": {"head_dim": 32}}, "{}: per_layer_config is {{'0': {{'head_dim': 32}}}}; gpt-oss has "
     "{{}}, and this tool knows no other."),
    ("quantization_config", {"quant_method": "fp8"}, "{}: quantization_config.quant_method is 'fp8'; gpt-oss has "
     "'mxfp4', and this tool knows no other: leave quantization_config out to verify the model without quantization."),
    ("text_config", {"model_type": "gpt_oss", "hidden_size": 96}, "{}: text_config describes a model of its own "
     "(model_type 'gpt_oss'); one gpt-oss model is needed: write text_config's own numbers into a file if that is the "
     "one."),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "text"), WRONG, ids=[f"{path}={value}" for path, value, _ in WRONG])
def test_a_wrong_value_in_config_json_is_named(tmp_path: Path, path: str, value: object, text: str) -> None:
    file = written(tmp_path, with_value(path, value))
    with pytest.raises(UsageError, match=f"^{re.escape(text.format(file))}$"):
        load_model(file)


def test_missing_fields_are_listed(tmp_path: Path) -> None:
    file = written(tmp_path, {"hidden_size": 96, "vocab_size": 544, "num_experts": 8})
    text = f"{file}: num_hidden_layers, intermediate_size not given; is it a gpt-oss config.json?"
    with pytest.raises(UsageError, match=f"^{re.escape(text)}$"):
        load_model(file)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "is not JSON: Expecting value"),
        (b'{"hidden_size": 2880', "is not JSON: Expecting ',' delimiter"),
        (b"\xff\xfe{}", "is not JSON: 'utf-8' codec can't decode"),
        (b'{"hidden_size": ' + b"1" * 5000 + b"}", "is not JSON: Exceeds the limit"),
        (b"[" * 100_000, "is not JSON: maximum recursion depth exceeded"),
        (b"[1, 2]", "holds a JSON list; an object is needed."),
        (b"null", "holds a JSON NoneType; an object is needed."),
        (b'{"a": 1, "head_dim": 64, "head_dim": 32}', "head_dim is given twice, as 64 and 32; keep one."),
        (b" " * ((1 << 24) + 1), "is longer than 16777216 bytes"),
    ],
    ids=["empty", "truncated", "not_text", "huge_number", "deep", "array", "null", "twice", "long"],
)
def test_a_file_that_is_no_json_object_is_said_to_be_none(tmp_path: Path, content: bytes, text: str) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(content)
    with pytest.raises(UsageError, match=text) as caught:
        load_model(str(file))
    assert str(file) in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder.json").mkdir()
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "loop.json").symlink_to(tmp_path / "loop.json")  # unreadable for root too
    reasons = {"absent": "No such file or directory", "folder": "Is a directory", "loop": "Too many levels of symbolic"}
    reasons["pipe"] = "not a regular file"
    for name, reason in reasons.items():
        with pytest.raises(UsageError, match=rf"cannot read {tmp_path}/{name}\.json: {reason}"):
            load_model(f"{tmp_path}/{name}.json")


def test_an_unknown_model_name_gets_the_nearest_one_and_all_choices(tmp_path: Path) -> None:
    text = (
        "unknown model 'gpt-oss-20B'. Did you mean 'gpt-oss-20b'? "
        "Choose from: tiny, gpt-oss-20b, gpt-oss-120b, path/to/config.json."
    )
    with pytest.raises(UnknownNameError, match=f"^{re.escape(text)}$"):
        load_model("gpt-oss-20B")
    with pytest.raises(UnknownNameError, match="unknown model"):
        load_model(str(tmp_path))  # a folder
