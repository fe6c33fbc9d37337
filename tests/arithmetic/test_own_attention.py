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


def test_attention_whose_keys_go_round_and_a_module_of_dtensors(tmp_path: Path) -> None:
    assert_proved(tmp_path, FILE, ["RING", "POSTED", "GATHERED", "DTENSOR"], "--tp", "2,4")


@pytest.mark.parametrize(("kinds", "options"), [(("FLASH",), LOCAL), (("RING", "DTENSOR"), ())])
def test_a_mistake_is_placed(tmp_path: Path, kinds: tuple[str, ...], options: tuple[str, ...]) -> None:
    cases = {name: tensor for kind in kinds for name, tensor in of(kind).items()}
    assert len(cases) >= 3 * len(kinds)
    assert_different(tmp_path, FILE, cases, *options)
