"""config.json files whose rotary embedding is not gpt-oss's, or is said twice: one sentence with both values."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from published import HUGGING_FACE

from tp_harness.errors import UsageError
from tp_harness.models import load_model

YARN: dict[str, Any] = HUGGING_FACE["rope_scaling"]
ONLY = "and this tool knows no other"
OLDER = (
    "which is plain rotary embedding to transformers 4 and YaRN with factor 32 to transformers 5; write "
    '"rope_parameters": {"rope_type": "default"} for the first, or leave rope_scaling out for the second.'
)


def without(*names: str) -> dict[str, Any]:
    return {key: value for key, value in YARN.items() if key not in names}


# what is put over gpt-oss-20b's file -> the sentence
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "thetas": (
        {"rope_scaling": {**YARN, "rope_theta": 10000.0}},
        "rope_theta is 150000 and rope_scaling.rope_theta is 10000.0, but they mean the same; keep one.",
    ),
    "newer_theta": (
        {"rope_scaling": None, "rope_parameters": {**YARN, "rope_theta": 10000.0}},
        "rope_theta is 150000 and rope_parameters.rope_theta is 10000.0, but they mean the same; keep one.",
    ),
    "null_theta": (
        {"rope_scaling": {**YARN, "rope_theta": None}},
        "rope_theta is 150000 and rope_scaling.rope_theta is None, but they mean the same; keep one.",
    ),
    "no_theta": ({"rope_theta": None}, "rope_theta is None; a positive number is needed."),
    "theta_1": (
        {"rope_theta": 1},
        "rope_theta is 1, by which every pair turns alike; YaRN needs another, as 150000.",
    ),
    "truncate_absent": (
        {"rope_scaling": without("truncate")},
        "rope_scaling.truncate is not given, which transformers takes as true, the YaRN ramp rounded to whole pairs; "
        f'gpt-oss has false, {ONLY}: write "truncate": false if that is meant.',
    ),
    "truncate": (
        {"rope_scaling": {**YARN, "truncate": True}},
        "rope_scaling.truncate is True, the YaRN ramp rounded to whole pairs; "
        f'gpt-oss has false, {ONLY}: write "truncate": false if that is meant.',
    ),
    "null": ({"rope_scaling": None}, f"rope_scaling is None, {OLDER}"),
    "empty": ({"rope_scaling": {}}, f"rope_scaling is {{}}, {OLDER}"),
    "by_layer_type": (
        {"rope_scaling": None, "rope_parameters": {"full_attention": {"factor": 8}, "sliding_attention": None}},
        "rope_parameters.full_attention is {'factor': 8}, numbers of one layer type; gpt-oss has one set for all "
        f"layers, {ONLY}.",
    ),
    "text": ({"rope_scaling": "yarn"}, "rope_scaling is 'yarn'; an object of numbers is needed."),
    "two_objects": (
        {"rope_parameters": {**YARN, "factor": 2}},
        "rope_scaling.factor is 32.0 and rope_parameters.factor is 2; keep one of the two objects.",
    ),
    "half_an_object": (
        {"rope_parameters": without("factor")},
        "rope_scaling.factor is 32.0 and rope_parameters.factor is not given; keep one of the two objects.",
    ),
    "linear": (
        {"rope_scaling": {**YARN, "rope_type": "linear"}},
        "rope_scaling.rope_type is 'linear'; gpt-oss has 'yarn', and this tool knows that and 'default' alone.",
    ),
    "type": (
        {"rope_scaling": {**without("rope_type"), "type": "dynamic"}},
        "rope_scaling.rope_type is 'dynamic'; gpt-oss has 'yarn', and this tool knows that and 'default' alone.",
    ),
    "two_types": (
        {"rope_scaling": {**YARN, "type": "linear"}},
        "rope_scaling.rope_type is 'yarn' and rope_scaling.type is 'linear', but they mean the same; keep one.",
    ),
    "no_type": (
        {"rope_scaling": without("rope_type")},
        "rope_scaling.factor is 32.0, but rope_scaling.rope_type is not given, which means 'default', which scales "
        "nothing; give rope_type 'yarn', or leave factor out.",
    ),
    "default_and_factor": (
        {"rope_scaling": {**YARN, "rope_type": "default"}},
        "rope_scaling.factor is 32.0, but rope_scaling.rope_type is 'default', which scales nothing; give rope_type "
        "'yarn', or leave factor out.",
    ),
    "no_factor": (
        {"rope_scaling": without("factor")},
        "rope_scaling.factor is not given, which rope_type 'yarn' needs; gpt-oss has 32.",
    ),
    "null_factor": (
        {"rope_scaling": {**YARN, "factor": None}},
        "rope_scaling.factor is None; a positive number is needed.",
    ),
    "small_factor": ({"rope_scaling": {**YARN, "factor": 0.5}}, "rope_scaling.factor is 0.5; 1 or more is needed."),
    "beta_0": (
        {"rope_scaling": {**YARN, "beta_fast": 0}},
        "rope_scaling.beta_fast is 0; a positive number is needed.",
    ),
    "part_of_a_head": (
        {"rope_scaling": {**YARN, "partial_rotary_factor": 0.5}},
        f"rope_scaling.partial_rotary_factor is 0.5; gpt-oss rotates all of a head (1), {ONLY}.",
    ),
    "part_outside": (
        {"partial_rotary_factor": 0.25},
        f"partial_rotary_factor is 0.25; gpt-oss rotates all of a head (1), {ONLY}.",
    ),
    "attention_factor": (
        {"rope_scaling": {**YARN, "attention_factor": 1.0}},
        "rope_scaling.attention_factor is 1.0, which makes an attention factor of 1; gpt-oss has 0.1 ln(factor) + 1, "
        f"here 1.34657359, {ONLY}.",
    ),
    "attention_factor_0": (
        {"rope_scaling": {**YARN, "attention_factor": 0}},
        "rope_scaling.attention_factor is 0; a positive number is needed.",
    ),
    "mscales": (
        {"rope_scaling": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0}},
        "rope_scaling.mscale is 1.0 and rope_scaling.mscale_all_dim is 1.0, which makes an attention factor of 1; "
        f"gpt-oss has 0.1 ln(factor) + 1, here 1.34657359, {ONLY}.",
    ),
    "lengths": (
        {"original_max_position_embeddings": 8192},
        "original_max_position_embeddings is 8192 and rope_scaling.original_max_position_embeddings is 4096, but they "
        "mean the same; keep one.",
    ),
    "unread_length": (
        {"initial_context_length": 8192},
        "initial_context_length is 8192, but transformers does not read it and takes 4096, from "
        "original_max_position_embeddings or by default; give both the same value, or leave initial_context_length "
        "out.",
    ),
    "length_of_max_positions": (
        {"rope_scaling": without("original_max_position_embeddings")},
        "initial_context_length is 4096, but transformers does not read it and takes 131072, from "
        "original_max_position_embeddings or by default; give both the same value, or leave initial_context_length "
        "out.",
    ),
    "unread_factor": (
        {"rope_scaling_factor": 8.0},
        "rope_scaling_factor is 8.0, but transformers does not read it and takes 32.0, from factor or by default; give "
        "both the same value, or leave rope_scaling_factor out.",
    ),
    "unread_experts": (
        {"experts_per_token": 2},
        "experts_per_token is 2, but transformers does not read it and takes 4, from num_experts_per_tok or by "
        "default; give both the same value, or leave experts_per_token out.",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_another_rotary_embedding_is_refused_with_both_values(tmp_path: Path, name: str) -> None:
    over, sentence = REFUSED[name]
    file = tmp_path / "config.json"
    file.write_text(json.dumps(HUGGING_FACE | over))
    with pytest.raises(UsageError, match=f"^{re.escape(f'{file}: {sentence}')}$"):
        load_model(str(file))
