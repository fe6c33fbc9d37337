"""Mistakes of the compiled path: right or unseen where every rank runs its own Python, wrong in a program for all.

Tried by `tp-harness graph-faults` on every backend that runs here; not among `FAULTS`, most of which any backend sees.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from ....faults.fault import Fault, sharded
from ....faults.ways import gathers, reduces, runs, sets
from ....parallel.group import Group


def traced(x: torch.Tensor) -> bool:
    """Whether operations on `x`, of any shape and dtype, become part of a program instead of being run."""
    return x.device.type == "xla"


def _looks_up_from(start: Callable[[Any, torch.Tensor], int]) -> Callable[..., object]:
    """The embedding's forward with the first token of its range as a Python number."""

    def forward(self: Any, tokens: torch.Tensor) -> torch.Tensor:
        local, count = tokens - start(self, tokens), len(self.weight)
        held = (local >= 0) & (local < count)
        rows = self.weight[local.clamp(0, count - 1)] * held[..., None]
        return self.total(
            self.group.all_reduce(self.partial(rows).to(torch.promote_types(self.dtype, torch.float32)))
        ).to(self.dtype)

    return forward


def _own_start(module: Any, _tokens: torch.Tensor) -> int:
    return module.group.rank * len(module.weight)


def _start_of_the_tracing_rank(module: Any, tokens: torch.Tensor) -> int:
    """What is left in a program that was traced on rank 0 and then given to all."""
    return 0 if traced(tokens) else _own_start(module, tokens)


def _sum_of_halves(group: Group, x: torch.Tensor) -> torch.Tensor:
    """Replica groups of half the ranks; only a program has replica groups."""
    whole = getattr(group, "groups", None)
    if whole is None:
        return group.all_reduce(x)
    ranks, half = whole[0], group.size // 2
    group.groups = [ranks[:half], ranks[half:]]  # type: ignore[attr-defined]
    try:
        return group.all_reduce(x)
    finally:
        group.groups = whole  # type: ignore[attr-defined]


def _sum_if_needed(group: Group, x: torch.Tensor) -> torch.Tensor:
    return group.all_reduce(x) if bool(x.any()) else x


def _sum_in_bfloat16(group: Group, x: torch.Tensor) -> torch.Tensor:
    return group.all_reduce(x.bfloat16()).to(x.dtype)


def _sum_in_bfloat16_when_traced(group: Group, x: torch.Tensor) -> torch.Tensor:
    return _sum_in_bfloat16(group, x) if traced(x) else group.all_reduce(x)


def _gather_pinned(group: Group, x: torch.Tensor, dim: int) -> torch.Tensor:
    if not traced(x):
        return group.all_gather(x, dim)
    import torch_xla.core.xla_model as xm  # noqa: PLC0415  (there is one, as there is such a tensor)

    gathered: torch.Tensor = xm.all_gather(x, dim % x.ndim, groups=group.groups, pin_layout=True)  # type: ignore[attr-defined]
    return gathered


def _embedding(name: str, number: int, cause: str, **fields: Any) -> Fault:
    flags = ("partial", "total", "output.0")
    return Fault(name=name, number=number, component="embedding", cause=cause, active=sharded, flags=flags, **fields)


def _sum(name: str, cause: str, total: Callable[[Group, torch.Tensor], torch.Tensor]) -> Fault:
    return Fault(
        name=name,
        number=0,
        component="attention",
        cause=cause,
        apply=reduces("", total),
        active=sharded,
        flags=("total", "reduced", "output.0"),
    )


FAULTS = (
    _embedding(
        "rank-in-the-graph",
        4,
        "The first token of a rank's vocabulary range is a Python number, a constant of its program.",
        apply=runs("", "forward", _looks_up_from(_own_start)),
    ),
    _embedding(
        "scalar-in-the-graph",
        4,
        "The first token of a rank's range is a tensor without dimensions, which torch-xla folds where it is 0 or 1.",
        apply=sets("", vocab_start=lambda module, group: module.vocab_start[0].clone()),
    ),
    _embedding(
        "traced-on-rank-0",
        4,
        "The program was traced on rank 0, whose vocabulary range is every rank's now.",
        apply=runs("", "forward", _looks_up_from(_start_of_the_tracing_rank)),
    ),
    replace(
        _sum("halves-as-replica-groups", "The program sums over the two halves of the ranks apart.", _sum_of_halves),
        number=40,
    ),
    _sum("sum-in-a-branch", "Ranks sum only if their own summand is not all zero.", _sum_if_needed),
    _sum("sum-in-bfloat16", "Summands are rounded to bfloat16 before a sum planned in float32.", _sum_in_bfloat16),
    _sum(
        "sum-in-bfloat16-when-compiled",
        "The compiled program sums in bfloat16 what Python, and the plan, sum in float32.",
        _sum_in_bfloat16_when_traced,
    ),
    Fault(
        name="gather-with-pinned-layout",
        number=0,
        component="transformer",
        cause="torch-xla's default all_gather is an all_reduce with the rank's number in it.",
        apply=gathers("unembedding", _gather_pinned),
        active=sharded,
        flags=("output.0",),
    ),
)
