"""The smallest order for a build with neuronx-distributed, and what its builder is given."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from tp_harness.testing import neuron_build


def order(**fields: Any) -> neuron_build.Order:
    values: dict[str, Any] = {
        "make": partial(nn.Linear, 2, 2),
        "name": "Linear",
        "example_inputs": [(torch.zeros(1, 2),)],
        "tp_degree": 8,
        "load": lambda: {"w": torch.ones(2)},
        "compiler_args": None,
        "compiler_workdir": None,
        "priority_model_idx": 0,
        "logical_nc_config": 1,
        "dry_run": False,
    }
    return neuron_build.Order(**values | fields)


def builder_arguments() -> dict[str, Any]:
    return order().builder_arguments({"start": torch.arange(8)}, "w")
