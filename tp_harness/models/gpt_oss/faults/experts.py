"""Mistakes of the mixture of experts: router, gate and up, activation, down projection, and the sum over ranks."""

from __future__ import annotations

import math
from typing import Any

import torch

from ....faults.fault import NOT_IN_16_BITS, Fault, always, sharded
from ....faults.ways import Apply, all_of, computes, is_last, loads, loads_from, reduces, runs
from ....parallel.group import Group
from ....parallel.placements import Placement, StridedShard
from ..config import SWIGLU_ALPHA, InferenceConfig


def _softmax_over_all(self: Any, logits: torch.Tensor) -> torch.Tensor:
    logits = self.router_logits(logits)
    chosen = self.chosen(torch.topk(logits, self.experts_per_token, dim=-1).indices)
    return torch.zeros_like(logits).scatter(-1, chosen, torch.softmax(logits, -1).gather(-1, chosen))


def _first_experts(self: Any, logits: torch.Tensor) -> torch.Tensor:
    logits = self.router_logits(logits)
    chosen = self.chosen(torch.arange(self.experts_per_token).expand(len(logits), -1))
    return torch.zeros_like(logits).scatter(-1, chosen, 1 / self.experts_per_token)


def _swiglu(
    *, lowest: float = -math.inf, highest: float = 1.0, alpha: float = SWIGLU_ALPHA, one: float = 1.0, order: str = ""
) -> Apply:
    """The activation with other bounds (in units of the limit), another constant, or another order of gates and ups."""

    def activation(self: Any, x: torch.Tensor) -> torch.Tensor:
        pair = x.chunk(2, -1) if order == "halves" else x.unflatten(-1, (-1, 2)).unbind(-1)
        gate, up = pair[::-1] if order == "swapped" else pair
        top = highest * self.limit
        gate, up = gate.clamp(lowest * self.limit, top), up.clamp(-top, top)
        return gate * torch.sigmoid(alpha * gate) * (up + one)

    return runs("", "_swiglu", activation)


def _bias_unweighted(self: Any, weights: torch.Tensor) -> torch.Tensor:
    """Every chosen expert's bias in full."""
    return (weights > 0).to(weights.dtype) @ self.mlp2_bias.to(weights.dtype)


def _next_expert(self: Any, t: torch.Tensor, expert: int, *others: Any) -> torch.Tensor:
    """On all ranks but the first, the weights of the expert after the right one."""
    index = (expert + (self.group.rank > 0)) % self.num_experts
    return type(self)._expert(self, t, index, *others)


def _in_16_bits(group: Group, x: torch.Tensor) -> torch.Tensor:
    return group.all_reduce(x.bfloat16()).to(x.dtype) if group.size > 1 else x


def _as_halves(placement: Placement, full: torch.Tensor, rank: int, size: int) -> torch.Tensor:
    return StridedShard(1, 2).shard(full, rank, size)


def _some_left_out(config: InferenceConfig, tp: int) -> bool:
    return config.num_experts > config.experts_per_token


def _mlp(name: str, number: int, cause: str, apply: Apply, *flags: str, **fields: Any) -> Fault:
    """Most faults of this file: at one rank already; every one reaches the output."""
    return Fault(
        name=name,
        number=number,
        component="mlp",
        cause=cause,
        apply=apply,
        flags=(*flags, "output.0"),
        **({"active": always} | fields),
    )


# fmt: off
FAULTS = (  # a fault reads as one paragraph
    _mlp(
        "stale-shard-of-last-rank", 14, "The last rank's shard of the down projection is that of an earlier step.",
        computes("mlp2_weight", lambda x, rank, size: x * (1 + (rank == size - 1) / 128)), "partial",
        visible_in=NOT_IN_16_BITS, heavy=True, signature="one part wrong",
    ),
    _mlp(
        "router-bias-dropped", 46, "The router's bias is not loaded.",
        loads("gate.bias", lambda placement, full, rank, size: 0 * full), "router_logits", "chosen", loads=True,
        signature="router bias",
    ),
    _mlp(
        "softmax-over-all-experts", 47, "The router's softmax runs over all experts instead of the chosen ones.",
        runs("", "_route", _softmax_over_all), "partial", active=_some_left_out, signature="softmax over all experts",
    ),
    _mlp(
        "routing-ignored", 48, "Every token goes to the first experts, with equal weights.",
        runs("", "_route", _first_experts), "chosen", active=_some_left_out,
    ),
    _mlp(
        "gate-up-in-halves", 49, "Gates and ups are taken as two halves instead of as pairs.",
        _swiglu(order="halves"), "activation", signature="gate up in halves",
    ),
    _mlp(
        "gate-up-cut-as-halves", 50, "The fused gate and up rows are sharded as two halves instead of as pairs.",
        all_of(loads("mlp1_weight", _as_halves), loads("mlp1_bias", _as_halves)), "gate_up",
        active=sharded, loads=True, heavy=True, signature="gate up cut in halves",
    ),
    _mlp(
        "gate-up-swapped", 51, "Gates are taken for ups and ups for gates.",
        _swiglu(order="swapped"), "activation", signature="gate up swapped",
    ),
    _mlp(
        "mlp1-bias-of-rank-0", 52, "Every rank loads rank 0's biases of gate and up.",
        loads_from("mlp1_bias", lambda rank, size: 0), "gate_up", active=sharded, loads=True,
        signature="gate up bias of rank 0",
    ),
    _mlp(
        "clamp-missing", 53, "Gates and ups are not clamped.",
        _swiglu(highest=math.inf), "activation", signature="clamp missing",
    ),
    _mlp(
        "gate-clamp-symmetric", 54, "Gates are clamped on both sides instead of above alone.",
        _swiglu(lowest=-1.0), "activation", visible_in=NOT_IN_16_BITS, faint=True, signature="clamp symmetric",
    ),
    _mlp(
        "alpha-1", 55, "The activation's constant is 1 instead of 1.702.",
        _swiglu(alpha=1.0), "activation", signature="swiglu alpha",
    ),
    _mlp(
        "up-plus-1-missing", 56, "The 1 is not added to the ups.",
        _swiglu(one=0.0), "activation", signature="up plus 1 missing",
    ),
    _mlp(
        "mlp2-of-next-rank", 57, "Each rank loads the next rank's columns of the down projection.",
        loads_from("mlp2_weight", lambda rank, size: (rank + 1) % size), "partial", active=sharded, loads=True,
        signature="weights of other rank",
    ),
    _mlp(
        "mlp2-transposed", 64, "A shard of the down projection is read as [intermediate, hidden].",
        computes("mlp2_weight", lambda x, rank, size: x.transpose(1, 2).reshape(x.shape)), "partial", heavy=True,
        signature="weights transposed",
    ),
    _mlp(
        "mlp2-bias-x-tp", 58, "The down biases are added on every rank, tp times in all.",
        computes("mlp2_bias", lambda x, rank, size: x * size), "combined", active=sharded, signature="bias x tp",
    ),
    _mlp(
        "mlp2-bias-by-tp", 59, "The down biases are divided by tp and added once.",
        computes("mlp2_bias", lambda x, rank, size: x / size), "combined", active=sharded, signature="bias / tp",
    ),
    _mlp(
        "mlp2-bias-dropped", 59, "The down biases are not added.",
        computes("mlp2_bias", lambda x, rank, size: 0 * x), "combined", signature="bias dropped",
    ),
    _mlp(
        "mlp2-bias-unweighted", 59, "The down biases are added without the router's weights.",
        runs("", "_down_bias", _bias_unweighted), "combined", signature="bias unweighted",
    ),
    _mlp(
        "experts-not-reduced", 60, "The all-reduce after the experts is missing.",
        reduces("", lambda group, x: x), "total", active=sharded, signature="all-reduce missing",
    ),
    _mlp(
        "experts-reduced-twice", 60, "The sum over ranks after the experts runs twice.",
        reduces("", lambda group, x: group.all_reduce(group.all_reduce(x))), "total", active=sharded,
        signature="times tp",
    ),
    _mlp(
        "experts-last-rank-dropped", 60, "The last rank's part is missing from the sum of the experts.",
        reduces("", lambda group, x: group.all_reduce(0 * x if is_last(group) else x)), "total", active=sharded,
        signature="rank dropped",
    ),
    _mlp(
        "expert-index-offset", 61, "All ranks but the first use the weights of the expert after the chosen one.",
        runs("", "_expert", _next_expert), "gate_up", active=sharded, signature="experts shifted",
    ),
    _mlp(
        "summed-in-16-bits", 0, "The ranks' parts are added in bfloat16 instead of float32.",
        reduces("", _in_16_bits), "total", active=sharded, signature="reduced in 16 bits",
    ),
)
# fmt: on
