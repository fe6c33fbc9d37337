"""Configurations: the presets are the published models, and numbers that describe no gpt-oss are refused."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from typing import Any

import pytest
import torch
from published import ORIGINAL

from tp_harness.config.divisibility import check_degrees
from tp_harness.config.model import NeuronConfig
from tp_harness.errors import UsageError
from tp_harness.models.gpt_oss import FAMILY
from tp_harness.models.gpt_oss.components import component_case
from tp_harness.models.gpt_oss.config import PRESETS, InferenceConfig, ModelConfig
from tp_harness.prepare.oracle import parameter_specs


@pytest.mark.parametrize(
    ("name", "layers", "experts", "billions"),
    [("gpt-oss-20b", 24, 32, 20.91), ("gpt-oss-120b", 36, 128, 116.83)],  # the model card's totals
)
def test_presets_are_the_published_models(name: str, layers: int, experts: int, billions: float) -> None:
    model = PRESETS[name]
    assert dataclasses.asdict(model) == {**ORIGINAL, "num_hidden_layers": layers, "num_experts": experts}
    assert model.qkv_size == 5120
    assert [model.window(layer) for layer in range(4)] == [128, 0, 128, 0]
    case = component_case("transformer", InferenceConfig.of(model, NeuronConfig()), 0)
    count = sum(torch.Size(spec.shape).numel() for spec in parameter_specs(case))
    assert round(count / 1e9, 2) == billions


def test_tiny_is_small_and_can_show_mistakes() -> None:
    tiny = PRESETS["tiny"]
    check_degrees(tiny, FAMILY.requirements, ("transformer",), (1, 2, 8, 32))
    assert tiny.hidden_size != tiny.intermediate_size
    assert tiny.num_key_value_heads < 32 <= tiny.num_attention_heads
    assert tiny.sliding_window < NeuronConfig().seq_len
    assert all(size // 32 % 2 for size in (tiny.hidden_size, tiny.intermediate_size, tiny.vocab_size))


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (
            {"num_experts": 2, "experts_per_token": 4},
            "experts_per_token 4 exceeds num_experts 2; a token cannot choose more experts than there are.",
        ),
        (
            {"num_attention_heads": 12},
            "num_attention_heads 12 is not a multiple of num_key_value_heads 8; "
            "every KV head must serve the same number of query heads.",
        ),
        ({"vocab_size": 2**40}, "vocab_size is 1099511627776; a positive integer below 2**40 is needed."),
        ({"sliding_window": None}, "sliding_window is None; a positive integer is needed."),
    ],
    ids=["experts", "heads", "huge", "none"],
)
def test_numbers_that_describe_no_gpt_oss_are_refused(values: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(text)}$"):
        ModelConfig(**values)
    with pytest.raises(UsageError, match=f"^{re.escape(text)}$"):
        InferenceConfig(**values)


def test_configs_are_frozen_and_take_keywords_only() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        PRESETS["tiny"].hidden_size = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        ModelConfig(24)  # type: ignore[misc]


@pytest.mark.parametrize("given", ["float32", torch.float32], ids=["name", "dtype"])
def test_neuron_config_takes_a_dtype_or_its_name(given: object) -> None:
    assert NeuronConfig(torch_dtype=given).torch_dtype is torch.float32
    assert NeuronConfig().torch_dtype is torch.bfloat16


@pytest.mark.parametrize("given", ["int8", "half_precision", "nn", torch.int64, None, 32], ids=str)
def test_neuron_config_refuses_what_is_no_floating_point_dtype(given: object) -> None:
    text = f"torch_dtype {given!r} is not a floating-point dtype of torch."
    with pytest.raises(UsageError, match=f"^{re.escape(text)}$"):
        NeuronConfig(torch_dtype=given)


@pytest.mark.parametrize("name", ["batch_size", "seq_len", "tp_degree"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "8", None], ids=repr)
def test_neuron_config_sizes_are_positive_integers(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=f"^{name} is {value!r}; a positive integer is needed.$"):
        NeuronConfig(**{name: value})


@pytest.mark.parametrize("name", PRESETS)
def test_inference_config_is_the_model_and_how_it_is_run(name: str) -> None:
    neuron = NeuronConfig(batch_size=2, seq_len=40, torch_dtype="float32", tp_degree=8)
    config = InferenceConfig.of(PRESETS[name], neuron)
    assert config.neuron_config is neuron
    fields = [field.name for field in dataclasses.fields(ModelConfig)]
    assert all(getattr(config, field) == getattr(PRESETS[name], field) for field in fields)


def test_a_usage_error_and_a_stored_result_need_no_torch() -> None:
    """One process for all: importing torch takes seconds, and a machine that reads reports may not have it."""
    names = ("config.model", "config.options", "config.divisibility", "judge.verdict", "results.result")
    names += ("results.run_record", "report.terminal", "errors", "cli")
    script = f"""
import importlib, sys
for name in {names}:
    importlib.import_module("tp_harness." + name)
    assert "torch" not in sys.modules, name
code = sys.modules["tp_harness.cli"].main(["verify", "--component", "atention"])
assert "torch" not in sys.modules, "a usage error"
assert sys.modules["tp_harness.cli"].main(["list", "models"]) == 0
assert "torch" not in sys.modules, "list models"
import tp_harness.checkpoint.checkpoint
assert "torch" in sys.modules, "this test would see it"
sys.exit(code)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "unknown component 'atention'. Did you mean 'attention'?" in done.stderr


def test_yarn_ramp_outside_the_heads_pairs_is_refused() -> None:
    with pytest.raises(UsageError, match=r"YaRN's ramp runs from pair .* of head_dim 4, where 0 < low < high < 1"):
        ModelConfig(head_dim=4)
