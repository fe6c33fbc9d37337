"""What the user asked for, decided before anything is computed. No torch.

The names of a model's configuration, which people import from here, are the first family's.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "InferenceConfig": "models.gpt_oss.config",
    "ModelConfig": "models.gpt_oss.config",
    "NeuronConfig": "config.model",
    "PRESETS": "models.gpt_oss.config",
}

__all__ = [*_HOMES]  # noqa: PLE0604  (names of strings)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tp_harness.config' has no attribute {name!r}")
    return getattr(importlib.import_module(f"tp_harness.{_HOMES[name]}"), name)
