"""Attention written otherwise, and modules of DTensors, in exact arithmetic: right ones are proved, mistakes placed."""

from __future__ import annotations

from pathlib import Path

import pytest
from exact_attention import MISTAKES
from exact_verdicts import assert_different, assert_proved

FILE, LOCAL = "exact_attention.py", ("--backend", "local")


def of(kind: str) -> dict[str, str]:
    """By the mistakes of a kind, the first tensor that each makes wrong."""
    return {name: tensor for name, tensor in MISTAKES.items() if name.startswith(kind)}


def test_online_softmax_in_chunks_is_softmax(tmp_path: Path) -> None:
    assert_proved(tmp_path, FILE, ["FLASH"], "--tp", "2", *LOCAL)


@pytest.mark.parametrize("name", ["RING", "POSTED", "GATHERED"])
def test_attention_whose_keys_go_round_is_attention(tmp_path: Path, name: str) -> None:
    assert_proved(tmp_path, FILE, [name], "--tp", "2,4")


def test_a_module_of_dtensors(tmp_path: Path) -> None:
    assert_proved(tmp_path, FILE, ["DTENSOR"], "--tp", "2,4")


@pytest.mark.parametrize("kind", ["FLASH", "RING", "DTENSOR"])
def test_a_mistake_is_placed(tmp_path: Path, kind: str) -> None:
    assert_different(tmp_path, FILE, of(kind), *(LOCAL if kind == "FLASH" else ()))
