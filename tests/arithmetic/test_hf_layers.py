"""transformers' decoder layers in exact arithmetic: right ones are proved, and mistakes in them are placed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from exact_verdicts import assert_different, assert_proved

if find_spec("transformers.distributed.expert_parallel") is None:
    pytest.skip("transformers with expert parallelism (5.21) is not installed", allow_module_level=True)

from hf_mistakes import MISTAKES

LAYERS, LOCAL = ("LLAMA", "QWEN", "GPT_OSS"), ("--backend", "local")


def test_sdpa_is_eager_attention(tmp_path: Path) -> None:
    assert_proved(tmp_path, "hf_layers.py", LAYERS, "--tp", "1,2", *LOCAL)


@pytest.mark.parametrize(
    "name", ["LLAMA_TP", "QWEN_TP", *(pytest.param(name, marks=pytest.mark.slow) for name in ("QWEN_EP", "GPT_OSS_EP"))]
)
def test_their_own_parallelism_is_right(tmp_path: Path, name: str) -> None:
    assert_proved(tmp_path, "hf_layers.py", [name], "--tp", "2,4")


def test_a_mistake_in_attention_or_experts_is_placed(tmp_path: Path) -> None:
    cases = {f"{name}_{number}": tensor for name in LAYERS for number, tensor in enumerate(MISTAKES[name])}
    assert_different(tmp_path, "hf_mistakes.py", cases, *LOCAL)


def of_ranks(name: str) -> list[object]:
    """Those in a layer that is cut, a test each; where another layer has their like, the tests are slow ones."""
    marks = () if name == "LLAMA_TP" else (pytest.mark.slow,)
    return [pytest.param(f"{name}_{n}", tensor, marks=marks) for n, tensor in enumerate(MISTAKES[name])]


@pytest.mark.parametrize(
    ("name", "tensor"), [p for name in ("LLAMA_TP", "QWEN_TP", "QWEN_EP", "GPT_OSS_EP") for p in of_ranks(name)]
)
def test_a_mistake_in_their_parallelism_is_placed(tmp_path: Path, name: str, tensor: str) -> None:
    assert_different(tmp_path, "hf_mistakes.py", {name: tensor})
