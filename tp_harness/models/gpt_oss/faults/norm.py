"""Mistakes of norms and of the residual around them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ....faults.fault import NOT_IN_16_BITS, Fault, always, sharded
from ....faults.ways import Apply, computes, edits, loads, sets
from ....parallel.group import Group
from ..config import RMS_NORM_EPS, InferenceConfig

PADDED_TO = 512  # 2880 becomes 3072


def _norm_by(
    owner: str, mean_square: Callable[[torch.Tensor, Group], torch.Tensor], eps: float = RMS_NORM_EPS
) -> Apply:
    """A norm with another statistic."""

    def forward_of(norm: Any, group: Group) -> Callable[[torch.Tensor], torch.Tensor]:
        def forward(x: torch.Tensor) -> torch.Tensor:
            wide = x.to(torch.promote_types(x.dtype, torch.float32))
            return (wide * torch.rsqrt(mean_square(wide, group) + eps) * norm.scale).to(x.dtype)

        return forward

    return sets(owner, forward=forward_of)


def _mean_square(x: torch.Tensor, group: Group) -> torch.Tensor:
    return x.square().mean(-1, keepdim=True)


def _residual_in_every_part(module: Any, group: Group) -> None:
    """Keep the input that the norm reads, and add it to each rank's part of the sum."""
    module.norm.register_forward_pre_hook(lambda _module, inputs: setattr(module, "kept", inputs[0]))
    module.partial.register_forward_hook(lambda _module, _inputs, output: output + module.kept)


def _padded(config: InferenceConfig, tp: int) -> bool:
    return config.hidden_size % PADDED_TO != 0


FAULTS = (
    Fault(
        name="norm-over-local-shard",
        number=8,
        component="rmsnorm",
        cause="The mean square is taken over the rank's share of the hidden dimension.",
        apply=_norm_by("", lambda x, group: _mean_square(x.chunk(group.size, -1)[group.rank], group)),
        active=sharded,
        flags=("output.0",),
        signature="norm over shard",
    ),
    Fault(
        name="norm-over-padded-width",
        number=9,
        component="rmsnorm",
        cause="The mean square is divided by the padded hidden size.",
        apply=_norm_by(
            "", lambda x, group: x.square().sum(-1, keepdim=True) / (-(-x.shape[-1] // PADDED_TO) * PADDED_TO)
        ),
        active=_padded,
        flags=("output.0",),
        signature="norm over padded width",
    ),
    Fault(
        name="norm-eps",
        number=10,
        component="rmsnorm",
        cause="The norm's epsilon is 1e-6 instead of 1e-5.",
        apply=_norm_by("", _mean_square, eps=1e-6),
        active=always,
        flags=("output.0",),
        signature="norm eps",
    ),
    Fault(
        name="norm-eps-in-attention",
        number=10,
        component="attention",
        cause="The epsilon of the norm before attention is 1e-6 instead of 1e-5.",
        apply=_norm_by("norm", _mean_square, eps=1e-6),
        active=always,
        flags=("norm", "output.0"),
        signature="norm eps",
    ),
    Fault(
        name="gamma-shifted",
        number=11,
        component="attention",
        cause="The norm's scale is loaded one channel off.",
        apply=loads("norm.scale", lambda placement, full, rank, size: full.roll(1)),
        active=always,
        flags=("norm", "output.0"),
        loads=True,
        signature="norm scale moved",
    ),
    Fault(
        name="gamma-ignored",
        number=11,
        component="mlp",
        cause="The norm's scale is not applied.",
        apply=computes("norm.scale", lambda x, rank, size: torch.ones_like(x)),
        active=always,
        flags=("norm", "output.0"),
        signature="norm scale ignored",
    ),
    Fault(
        name="gamma-of-one-rank",
        number=12,
        component="rmsnorm",
        cause="The last rank's replica of the norm's scale differs from the others'.",
        apply=computes("scale", lambda x, rank, size: x.roll(int(rank == size - 1 > 0))),
        active=sharded,
        flags=("output.0",),
        signature="norm scale moved",
    ),
    Fault(
        name="gamma-of-one-rank-in-attention",
        number=12,
        component="attention",
        cause="The last rank's replica of the scale of the norm before attention differs from the others'.",
        apply=computes("norm.scale", lambda x, rank, size: x.roll(int(rank == size - 1 > 0))),
        active=sharded,
        flags=("norm", "output.0"),
        signature="norm scale moved",
    ),
    Fault(
        name="residual-before-sum",
        number=13,
        component="attention",
        cause="Every rank adds the residual to its part of the sum, so that it is added tp - 1 times too often.",
        apply=edits(lambda module, group: _residual_in_every_part(module, group) if group.size > 1 else None),
        active=sharded,
        flags=("partial", "output.0"),
        signature="residual x tp",
    ),
    Fault(
        name="variance-in-bfloat16",
        number=15,
        component="rmsnorm",
        cause="The mean square is computed in bfloat16.",
        apply=_norm_by("", lambda x, group: _mean_square(x.bfloat16(), group).to(x.dtype)),
        active=always,
        flags=("output.0",),
        visible_in=NOT_IN_16_BITS,  # R lies between 1.1 and 1.2
        signature="norm in bfloat16",
    ),
)
