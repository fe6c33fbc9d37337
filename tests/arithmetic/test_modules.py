"""Modules of unusual kinds in exact arithmetic: buffers that change, casts, codes, convolutions, tied parameters."""

from __future__ import annotations

from pathlib import Path

from exact_verdicts import assert_different, assert_proved

SHAPES = ("CONVOLUTIONS", "PATCHES", "NORMS", "SEVERAL", "VOCABULARY_CUT", "DEALT")
NAMES = (*SHAPES, "CASTS", "CACHED", "QUANTISED", "COMPILED")
LOCAL = ("--backend", "local")


def test_each_is_proved(tmp_path: Path) -> None:
    assert_proved(tmp_path, "exact_modules.py", NAMES, "--tp", "2", *LOCAL)


def test_complex_numbers_are_pairs_of_real_ones(tmp_path: Path) -> None:
    assert_proved(tmp_path, "exact_modules.py", ("COMPLEX", "PAIRS"), "--tp", "2", *LOCAL)


def test_a_complex_number_that_is_not_conjugated_is_another_one(tmp_path: Path) -> None:
    assert_different(tmp_path, "exact_modules.py", {"WRONG": "output.0"}, *LOCAL)
