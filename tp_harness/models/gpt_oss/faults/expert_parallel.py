"""Mistakes of expert parallel: they are put into components that run by plan "ep" or "ep-tp".

Each has been reported: a cause ends with a public report of its kind.
"""

from __future__ import annotations

from typing import Any

import torch

from ....faults.fault import Fault, sharded
from ....faults.ways import Apply, rewires, runs
from ....parallel.group import Group
from ..config import InferenceConfig


def _exchanges(config: InferenceConfig, tp: int) -> bool:
    """Where tokens go to their experts and back."""
    return config.plan == "ep" and tp > 1 and config.cuts_sequence(tp)


def _in_arrival_order(group: Group, x: torch.Tensor, split_dim: int, concat_dim: int) -> torch.Tensor:
    """Outputs come back in the order of the ranks from this one on."""
    out = group.all_to_all(x, split_dim, concat_dim)
    return out.roll(1, 1) if x.dtype in (torch.float32, torch.float64) else out


def _splits_transposed(group: Group, x: torch.Tensor, split_dim: int, concat_dim: int) -> torch.Tensor:
    """What is meant for the first rank goes to the last."""
    return group.all_to_all(x.flip(split_dim), split_dim, concat_dim)


def _dropped_on_the_last(group: Group, x: torch.Tensor, split_dim: int, concat_dim: int) -> torch.Tensor:
    """The last rank has no room for the last token of each row."""
    out = group.all_to_all(x, split_dim, concat_dim)
    if group.rank == group.size - 1:
        out = torch.cat((out[:, :, :-1], torch.zeros_like(out[:, :, -1:])), 2)
    return out


def _first_experts(self: Any, weights: torch.Tensor) -> torch.Tensor:
    return weights[:, : self.count]


def _summed_twice(group: Group, x: torch.Tensor) -> torch.Tensor:
    return group.all_reduce(group.all_reduce(x))


def _along_tp_only(self: Any, partial: torch.Tensor, is_cut: bool) -> torch.Tensor:
    return self.tp.all_reduce(partial)


def _fault(name: str, cause: str, apply: Apply, *flags: str, **fields: Any) -> Fault:
    named = {"active": sharded} | fields
    return Fault(name=name, number=0, component="mlp", cause=cause, apply=apply, flags=(*flags, "output.0"), **named)


# fmt: off
EXCHANGED = (  # by plan "ep"; a fault reads as one paragraph
    _fault(
        "experts-in-arrival-order", "Experts' outputs are added in the order in which they arrive (mori#475).",
        rewires("", "ep", all_to_all=_in_arrival_order), "partial", active=_exchanges,
    ),
    _fault(
        "experts-splits-transposed", "Each token goes to the rank that mirrors its experts' (vllm-ascend#10335).",
        rewires("", "ep", all_to_all=_splits_transposed), "partial", active=_exchanges,
    ),
    _fault(
        "experts-capacity-of-last-rank", "One rank drops tokens for which it has no room (vllm#52639).",
        rewires("", "ep", all_to_all=_dropped_on_the_last), "partial", active=_exchanges,
    ),
)
REPLICATED = (  # by plan "ep-tp"
    _fault(
        "experts-of-rank-0", "Every rank weights its experts as rank 0's (transformers#45473).",
        runs("local_experts", "forward", _first_experts), "partial",
        active=lambda config, tp: config.mesh(tp).get("ep", 1) > 1,
    ),
    _fault(
        "experts-summed-along-both", "Sums along ep and along tp are taken of what is summed already (vllm#49366).",
        rewires("", all_reduce=_summed_twice), "total",
    ),
    _fault(
        "experts-summed-along-tp", "The sum along ep is missing (sglang#35535).",
        runs("", "_sum", _along_tp_only), "total", active=lambda config, tp: config.mesh(tp).get("ep", 1) > 1,
    ),
)
FAULTS = (*EXCHANGED, *REPLICATED)
