"""Modules of unusual kinds in exact arithmetic: buffers that change, casts, codes, convolutions, tied parameters."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from exact_verdicts import assert_different, assert_proved

from tp_harness.libraries.torch_private import decomposition

SHAPES = ("PATCHES", "NORMS", "SEVERAL", "VOCABULARY_CUT", "DEALT")
NAMES = (*SHAPES, "CASTS", "CACHED", "QUANTISED", "COMPILED", "COMPLEX", "PAIRS")
LOCAL = ("--backend", "local")


def test_each_is_proved(tmp_path: Path) -> None:
    assert_proved(tmp_path, "exact_modules.py", NAMES, "--tp", "2", *LOCAL)


@pytest.mark.skipif(
    decomposition(torch.ops.aten.max_pool2d_with_indices.default) is None,
    reason="this torch cannot decompose max_pool2d",
)
def test_convolutions_and_pooling_are_proved(tmp_path: Path) -> None:
    assert_proved(tmp_path, "exact_modules.py", ("CONVOLUTIONS",), "--tp", "2", *LOCAL)


def test_a_complex_number_that_is_not_conjugated_is_another_one(tmp_path: Path) -> None:
    assert_different(tmp_path, "exact_modules.py", {"WRONG": "output.0"}, *LOCAL)
