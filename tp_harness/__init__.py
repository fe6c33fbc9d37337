"""Says whether a tensor-parallel model is the same function as its single-core reference.

Names are imported on first use: `import tp_harness` itself needs no torch.
"""

from __future__ import annotations

import importlib
from typing import Any

from .version import __version__

_HOMES = {
    "Case": "case",
    "KVHeads": "placements",
    "Partial": "placements",
    "Groups": "top_k",
    "QKVHeads": "placements",
    "Replicate": "placements",
    "Router": "routing",
    "Shard": "placements",
    "StridedShard": "placements",
    "build_function": "testing",
    "build_module": "testing",
    "current_group": "group",
    "validate_accuracy": "testing",
    "verify": "api",
}

__all__ = ["__version__", *_HOMES]  # noqa: PLE0604  (names of strings)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tp_harness' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
