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
    "names", [("LLAMA_TP", "QWEN_TP"), pytest.param(("QWEN_EP", "GPT_OSS_EP"), marks=pytest.mark.slow)]
)
def test_their_own_parallelism_is_right(tmp_path: Path, names: tuple[str, ...]) -> None:
    assert_proved(tmp_path, "hf_layers.py", names, "--tp", "2,4")


@pytest.mark.parametrize("name", ["LLAMA", pytest.param("QWEN", marks=pytest.mark.slow), "GPT_OSS"])
def test_a_mistake_in_attention_or_experts_is_placed(tmp_path: Path, name: str) -> None:
    cases = {f"{name}_{number}": tensor for number, tensor in enumerate(MISTAKES[name])}
    assert_different(tmp_path, "hf_mistakes.py", cases, *LOCAL)


@pytest.mark.parametrize(
    "name", ["LLAMA_TP", *(pytest.param(name, marks=pytest.mark.slow) for name in ("QWEN_TP", "QWEN_EP", "GPT_OSS_EP"))]
)
def test_a_mistake_in_their_parallelism_is_placed(tmp_path: Path, name: str) -> None:
    """In a layer that is cut; where another layer has their like, the test is a slow one."""
    assert_different(tmp_path, "hf_mistakes.py", {f"{name}_{n}": tensor for n, tensor in enumerate(MISTAKES[name])})
