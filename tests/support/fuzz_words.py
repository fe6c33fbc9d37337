"""Hostile command lines: flags, names, numbers and junk in any order."""

from __future__ import annotations

import random
from pathlib import Path

from fuzz_attempt import attempt, no_ranks

WORDS = [
    "verify", "list", "compare", "model", "--component", "--tp", "--model", "--batch", "--seq", "--layer", "--dtype",
    "--backend", "--seed", "--draws", "--init", "--kernels", "--repeats", "--checkpoint", "--case", "--out", "--resume",
    "--timeout", "--tp=", "--seed=", "--", "-", "-x", "--wrong", "--comp", "mlp", "rmsnorm", "attention", "transformer",
    "tiny", "gpt-oss-20b", "gpt-oss-120b", "x.json", "float32", "bfloat16", "gloo", "auto", "constant", "nki", "torch",
    "components", "models", "backends", "1", "2", "8", "32", "1,2", "2,2", "1,,2", "0", "-1", "3", "1e9", "nan", "inf",
    "-inf", "1048575", "1048576", "99999999999999999999", "1_000", "٣", "", " ", ".", "..", "/", "/dev/null", "nowhere",
    "nowhere.py:CASE", ":", "a\nb", "\x1b[31m", "[bold]", "\ud800", "x" * 5000, "x\0y",
]  # fmt: skip


def fuzz_cli(folder: Path, chance: random.Random) -> str:
    """Words in any order, mostly after `verify`."""
    words = [chance.choice(WORDS) for _ in range(chance.randrange(1, 7))]
    flags = [w for w in WORDS if w.startswith("--") and len(w) > 3]
    if chance.random() < 0.5:
        words = [word for _ in range(chance.randrange(1, 4)) for word in (chance.choice(flags), chance.choice(WORDS))]
    with no_ranks(folder):
        return attempt([*(["verify"] if chance.random() < 0.9 else []), *words])
