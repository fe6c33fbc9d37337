"""Modules of unusual kinds in exact arithmetic: buffers that change, casts, codes, convolutions, tied parameters."""

from __future__ import annotations

from pathlib import Path

from exact_verdicts import assert_proved

NAMES = (
    "CONVOLUTIONS", "PATCHES", "NORMS", "CASTS", "CACHED", "QUANTISED", "COMPILED", "SEVERAL", "VOCABULARY_CUT", "DEALT",
)  # fmt: skip


def test_each_is_proved(tmp_path: Path) -> None:
    assert_proved(tmp_path, "exact_modules.py", NAMES, "--tp", "2", "--backend", "local")
