"""Says whether a tensor-parallel model is the same function as its single-core reference.

Names are imported on first use: `import tp_harness` itself needs no torch.
"""

from __future__ import annotations

import importlib
from typing import Any

from .version import __version__

_HOMES = {
    "Call": "case.calls",
    "Case": "case.case",
    "Concat": "case.naming.sources",
    "FusedShard": "parallel.placements",
    "Groups": "case.top_k",
    "Interleave": "case.naming.sources",
    "Item": "case.naming.sources",
    "KVHeads": "parallel.placements",
    "OnRank": "parallel.on_rank",
    "Options": "config.options",
    "Output": "case.calls",
    "Part": "case.naming.sources",
    "Partial": "parallel.placements",
    "QKVHeads": "parallel.placements",
    "Replicate": "parallel.placements",
    "Router": "case.routing",
    "Same": "case.calls",
    "Shard": "parallel.placements",
    "Stack": "case.naming.sources",
    "StridedShard": "parallel.placements",
    "Transposed": "case.naming.sources",
    "build_function": "testing",
    "build_module": "testing",
    "collective": "parallel.group",
    "current_group": "parallel.group",
    "current_mesh": "parallel.mesh",
    "prove_accuracy": "testing.exactly",
    "validate_accuracy": "testing",
    "verify": "verification.api",
}

__all__ = ["__version__", *_HOMES]  # noqa: PLE0604  (names of strings)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tp_harness' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
