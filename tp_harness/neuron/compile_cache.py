"""Neuron's persistent compile cache: where it is, and which programs it holds. No torch.

Source: AWS's neuron-caching guide. An entry is the folder <root>/neuronxcc-<version>/MODULE_<hash>; it is locked
while one process compiles it, and every other one that needs it waits.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

DEFAULT_ROOT = Path("/var/tmp/neuron-compile-cache")


def cache_root(environment: Mapping[str, str]) -> Path | None:
    """The cache's root folder, --cache_dir in NEURON_CC_FLAGS first; None where it is not a local one (s3://...)."""
    place = environment.get("NEURON_COMPILE_CACHE_URL", "")
    try:
        words = shlex.split(environment.get("NEURON_CC_FLAGS", ""))
    except ValueError:
        words = []
    for i, word in enumerate(words):
        if word.partition("=")[0] == "--cache_dir":
            place = word.partition("=")[2] or "".join(words[i + 1 : i + 2])
    if "://" in place:
        return None
    return Path(place).expanduser() if place else DEFAULT_ROOT


def compiled_programs(root: Path | None) -> frozenset[str]:
    """The names of all entries with a finished program; none where there is no cache to look into."""
    if root is None:
        return frozenset()
    return frozenset(path.parent.name for path in root.glob("*/MODULE_*/model.neff"))
