"""Mistakes of the runtime: replicas that differ, sums read too early, workers that lost their configuration."""

from __future__ import annotations

import math
from typing import Any

import torch

from ....faults.fault import Fault, sharded
from ....faults.ways import Apply, is_last, passes, reduces, sets
from ....parallel.group import Group
from ..config import InferenceConfig


def _windowed(config: InferenceConfig, tp: int) -> bool:
    return tp > 1 and config.neuron_config.seq_len > config.sliding_window


def _one_ulp(x: torch.Tensor, group: Group) -> torch.Tensor:
    return torch.nextafter(x, 2 * x) if is_last(group) else x


def _last_element(x: torch.Tensor, group: Group) -> torch.Tensor:
    """One element of the last rank's copy is twice what it was."""
    mask = torch.zeros_like(x)
    mask.view(-1)[-1] = 1
    return x + mask * x if is_last(group) else x


def _read_before_wait(group: Group, x: torch.Tensor) -> torch.Tensor:
    """The last rank takes the second half of the tokens before the sum has reached them."""
    own, half = x.clone(), len(x) // 2
    total = group.all_reduce(x)
    return torch.cat((total[:half], own[half:])) if is_last(group) else total


def _last_token_stale(x: torch.Tensor, group: Group) -> torch.Tensor:
    return torch.cat((x[:, :-1], x[:, -2:-1]), dim=1)


def _runtime(name: str, number: int, component: str, cause: str, apply: Apply, *flags: str, **fields: Any) -> Fault:
    defaults: dict[str, Any] = {"active": sharded} | fields
    return Fault(
        name=name, number=number, component=component, cause=cause, apply=apply, flags=(*flags, "output.0"), **defaults
    )


# fmt: off
FAULTS = (  # a fault reads as one paragraph
    _runtime(
        "one-rank-s-last-bit", 65, "mlp", "The last rank's copy of the sum differs in the last bit.",
        passes("combined", _one_ulp), "combined",
    ),
    _runtime(
        "one-rank-s-last-element", 65, "attention", "One element of the last rank's copy of the output is wrong.",
        passes("reduced", _last_element), "reduced",
    ),
    _runtime(
        "read-before-wait", 66, "mlp", "The last rank reads half of an asynchronous sum before it has arrived.",
        reduces("", _read_before_wait), "total",
    ),
    _runtime(
        "clamp-lost-on-workers", 67, "mlp", "All ranks but the first run without the configured activation limit.",
        sets("", limit=lambda module, group: module.limit if group.rank == 0 else math.inf), "activation",
        signature="clamp missing",
    ),
    _runtime(
        "window-lost-on-workers", 67, "attention", "All ranks but the first run without the sliding window.",
        sets("", window=lambda module, group: module.window if group.rank == 0 else 0), "heads", active=_windowed,
        signature="window missing",
    ),
    _runtime(
        "last-token-stale", 0, "attention", "The last token of each row gets the result of the one before it.",
        passes("reduced", _last_token_stale), "reduced", active=lambda config, tp: config.neuron_config.seq_len > 1,
        signature="stale tokens",
    ),
)
# fmt: on
