"""config.json files as transformers reads them: what we take has its numbers and its rotary frequencies, or is refused.

transformers' own GptOssConfig and rotary embedding are the oracle, for a table of files that must be taken and for
files that are put together of every spelling, right and wrong.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from published import HUGGING_FACE
from tp_harness.reference.gpt_oss import AttentionBlock
from transformers.models.gpt_oss import modeling_gpt_oss as hf

from tp_harness.errors import UsageError
from tp_harness.models import load_model
from tp_harness.models.gpt_oss.config import SWIGLU_ALPHA, ModelConfig, huggingface

ROPE_KEYS = ("rope_scaling", "rope_theta", "initial_context_length", "experts_per_token")
BASE = {key: value for key, value in HUGGING_FACE.items() if key not in ROPE_KEYS} | {
    "num_hidden_layers": 2,
    "layer_types": ["sliding_attention", "full_attention"],
}
YARN: dict[str, Any] = HUGGING_FACE["rope_scaling"]
OF_32 = 1.3465735902799727  # 0.1 ln 32 + 1

ACCEPTED: dict[str, dict[str, Any]] = {
    "nothing": {},
    "nulls_of_the_newer_key": {"rope_parameters": None},
    "theta_beside_nothing": {"rope_theta": 10000.0},
    "older": {"rope_scaling": YARN, "rope_theta": 150000},
    "older_without_theta": {"rope_scaling": YARN},
    "newer": {"rope_parameters": {**YARN, "rope_theta": 99000.0}},
    "newer_beside_null": {"rope_parameters": {**YARN, "rope_theta": 99000.0}, "rope_scaling": None},
    "newer_beside_empty": {"rope_parameters": YARN, "rope_scaling": {}},
    "both_equal": {"rope_parameters": YARN, "rope_scaling": YARN},
    "both_thetas_equal": {"rope_parameters": {**YARN, "rope_theta": 10000.0}, "rope_theta": 10000},
    "null_theta_outside": {"rope_parameters": {**YARN, "rope_theta": 10000.0}, "rope_theta": None},
    "type": {"rope_scaling": {"type": "yarn", **{k: v for k, v in YARN.items() if k != "rope_type"}}},
    "both_types": {"rope_scaling": {**YARN, "type": "yarn"}},
    "no_betas": {"rope_scaling": {k: v for k, v in YARN.items() if not k.startswith("beta")}},
    "null_betas": {"rope_scaling": {**YARN, "beta_fast": None, "beta_slow": None}},
    "other_betas": {"rope_scaling": {**YARN, "beta_fast": 16.0, "beta_slow": 2.0}},
    "factor": {"rope_scaling": {**YARN, "factor": 4.0}},
    "factor_1": {"rope_scaling": {**YARN, "factor": 1.0}},
    "null_truncate": {"rope_scaling": {**YARN, "truncate": None}},
    "length_of_max_positions": {
        "rope_scaling": {k: v for k, v in YARN.items() if k != "original_max_position_embeddings"},
        "max_position_embeddings": 8192,
    },
    "length_outside": {"rope_scaling": YARN, "original_max_position_embeddings": 4096},
    "length_outside_alone": {
        "rope_scaling": {k: v for k, v in YARN.items() if k != "original_max_position_embeddings"},
        "original_max_position_embeddings": 2048,
    },
    "length_outside_nothing": {"original_max_position_embeddings": 2048},
    "attention_factor": {"rope_scaling": {**YARN, "attention_factor": OF_32}},
    "attention_factor_in_float32": {"rope_scaling": {**YARN, "attention_factor": torch.tensor(OF_32).item()}},
    "mscale_alone": {"rope_scaling": {**YARN, "mscale": 0.5}},
    "mscale_and_0": {"rope_scaling": {**YARN, "mscale": 0.5, "mscale_all_dim": 0}},
    "mscales_without_scaling": {"rope_scaling": {**YARN, "factor": 1, "mscale": 0.5, "mscale_all_dim": 1}},
    "whole_heads": {"rope_scaling": {**YARN, "partial_rotary_factor": 1.0}, "partial_rotary_factor": 1},
    "default": {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    "default_by_omission": {"rope_parameters": {"rope_theta": 10000.0}},
    "default_of_nothing": {"rope_parameters": {}},
    "default_and_a_length": {"rope_parameters": {"type": "default"}, "initial_context_length": 8192},
    "unread_names_that_agree": {
        "rope_scaling": YARN, "initial_context_length": 4096, "rope_scaling_factor": 32, "rope_ntk_alpha": 1,
        "rope_ntk_beta": 32, "experts_per_token": 4,
    },
    "experts_by_the_other_name": {"num_local_experts": 6, "num_experts": 6},
    "no_layer_types": {"layer_types": None},
    "older_layer_type": {"layer_types": ["sliding_attention", "attention"]},
    "alpha": {"swiglu_alpha": 1.702, "swiglu_limit": 5.5},
    "sizes": {"head_dim": 32, "num_attention_heads": 16, "num_key_value_heads": 4, "sliding_window": 64},
    "of_other_models": {"norm_topk_prob": True, "n_shared_experts": None, "attention_dropout": 0.5, "use_cache": False},
    "quantized": {"quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}},
}  # fmt: skip


def read(values: object) -> ModelConfig:
    """What we take the file for."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        path.write_text(json.dumps(values))
        return load_model(str(path))


def assert_same(ours: ModelConfig, values: dict[str, Any]) -> None:
    """That transformers reads the numbers and the rotary embedding of `ours` in the file."""
    theirs = hf.GptOssConfig(**json.loads(json.dumps(values)))
    for name in ("num_hidden_layers", "num_experts", "vocab_size", "hidden_size", "intermediate_size", "swiglu_limit",
                 "head_dim", "num_attention_heads", "num_key_value_heads", "sliding_window"):  # fmt: skip
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.experts_per_token == theirs.num_experts_per_tok
    windows = [theirs.sliding_window * (kind == "sliding_attention") for kind in theirs.layer_types]
    assert windows == [ours.window(layer) for layer in range(ours.num_hidden_layers)]
    assert theirs.swiglu_alpha == SWIGLU_ALPHA and theirs.rms_norm_eps == 1e-5
    assert theirs.attention_bias and not theirs.tie_word_embeddings
    rotary, expected = AttentionBlock(ours, device="meta").rope, hf.GptOssRotaryEmbedding(theirs)
    # theirs is float32: a few roundings of 6e-8 in powers and in the ramp, whose ends are near 1 over near 0
    torch.testing.assert_close(rotary.inv_freq.float(), expected.inv_freq, rtol=2e-6, atol=0)
    assert rotary.concentration == pytest.approx(expected.attention_scaling, rel=1e-7)


@pytest.mark.parametrize("name", ACCEPTED)
def test_a_file_that_is_taken_means_the_same_to_transformers(name: str) -> None:
    values = BASE | ACCEPTED[name]
    assert_same(read(values), values)


def test_frequencies_that_differ_would_be_seen() -> None:
    for other in ({"rope_theta": 10000.0}, {"rope_parameters": {**YARN, "truncate": True}}, {"rope_parameters": {}}):
        with pytest.raises(AssertionError):
            assert_same(read(BASE), BASE | other)


def test_every_field_that_transformers_has_is_read_fixed_or_changes_no_output() -> None:
    rope = {"rope_parameters", "max_position_embeddings", "layer_types"}
    no_effect = {
        "attention_dropout", "initializer_range", "router_aux_loss_coef", "use_cache",  # of training and generation
        "pad_token_id", "bos_token_id", "eos_token_id", "output_router_logits", "output_hidden_states", "return_dict",
        "dtype", "architectures", "transformers_version", "id2label", "label2id", "problem_type",
        "chunk_size_feed_forward", "is_encoder_decoder",  # which gpt-oss's modules do not look at
    }  # fmt: skip
    known = rope | no_effect | huggingface._FROM_HUGGING_FACE.keys() | huggingface._FIXED.keys()
    assert {field.name for field in dataclasses.fields(hf.GptOssConfig)} - known == set()


def some(*values: object) -> st.SearchStrategy[Any]:
    """One of the values, the first half of the time: so that a file is often right but for one thing."""
    return st.one_of(st.just(values[0]), st.sampled_from(values))


ropes = st.fixed_dictionaries(
    {"rope_type": some("yarn", "default", "linear", None), "factor": some(32.0, 8, 1, 0.5, None)},
    optional={
        "type": some("yarn", "default", "dynamic"),
        "truncate": some(False, True, None),
        "original_max_position_embeddings": some(4096, 8192, None),
        "rope_theta": some(150000, 10000.0, None),
        "beta_fast": some(32.0, 16, 0, None),
        "beta_slow": some(1, 2.5, None),
        "attention_factor": some(None, OF_32, 1.0, 0),
        "mscale": some(None, 1.0, 0.5),
        "mscale_all_dim": some(None, 1.0, 0),
        "partial_rotary_factor": some(1.0, 0.5),
        "full_attention": some({"rope_type": "default"}, None),
        "long_factor": some([1.0]),
    },
)
complete = st.builds(lambda extra, gone: {k: v for k, v in (YARN | extra).items() if k != gone}, ropes, some("", *YARN))
objects = some(YARN, YARN | {"rope_theta": 150000}, {}, None, "yarn") | complete
files = st.fixed_dictionaries(
    {},
    optional={
        "rope_scaling": objects,
        "rope_parameters": objects,
        "rope_theta": some(150000, 10000.0, None),
        "original_max_position_embeddings": some(4096, 8192),
        "max_position_embeddings": some(131072, 4096),
        "partial_rotary_factor": some(None, 1.0, 0.25),
        "initial_context_length": some(4096, 8192),
        "rope_scaling_factor": some(32.0, 8.0, 1.0),
        "rope_ntk_beta": some(32, 16),
        "experts_per_token": some(4, 2),
        "num_experts": some(32, 16),
        "swiglu_alpha": some(1.702, 1.0),
        "layer_types": some(["sliding_attention", "full_attention"], ["full_attention"] * 2, ["sliding_attention"]),
        "attention_bias": some(True, False),
        "head_dim": some(64, 32),
    },
)


@pytest.mark.parametrize("kept", ["num_experts_per_tok", ""], ids=["with_experts_per_tok", "without"])
def test_a_file_of_any_spellings_is_read_as_transformers_does_or_refused(kept: str) -> None:
    base = {key: value for key, value in BASE.items() if kept or key != "num_experts_per_tok"}
    taken = []

    @settings(deadline=None, max_examples=400, suppress_health_check=list(HealthCheck))
    @given(files)
    def check(drawn: dict[str, Any]) -> None:
        try:
            ours = read(base | drawn)
        except UsageError as error:
            assert "\n" not in str(error)
            return
        taken.append(drawn)
        assert_same(ours, base | drawn)

    check()
    assert len(taken) > 40, "too few of the drawn files are right for this to say anything"
