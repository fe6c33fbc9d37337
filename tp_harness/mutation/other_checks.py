"""Checks that people use on sharded models today, as data: what they look at, and when they pass.

They see what a test of theirs sees: rank 0's outputs (joined where ranks hold shards) beside the single-core model in
the same dtype, with each side's own routing, and no other rank, tap, schedule or shard.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a check looks at: one output of rank 0, the single-core model's, and the float64 one's."""

    actual: torch.Tensor
    expected: torch.Tensor
    oracle: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A check.

    Args:
        name: what the tables call it.
        dtype: of the model under test.
        init: the weights it is used with: "discriminating" (this tool's), or "constant" (0.5 everywhere).
        content: (seen) -> whether it passes.
    """

    name: str
    dtype: str
    init: str
    content: Callable[[Seen], bool]

    def passes(self, seen: Seen) -> bool:
        """Whether the check is content; another shape or a NaN never passes."""
        if seen.actual.shape != seen.expected.shape or not torch.isfinite(seen.actual).all():
            return False
        return self.content(Seen(**{name: value.to(torch.float64) for name, value in vars(seen).items()}))


def _allclose(rtol: float, atol: float) -> Callable[[Seen], bool]:
    return lambda seen: torch.allclose(seen.actual, seen.expected, rtol=rtol, atol=atol)


def _largest(rtol: float) -> Callable[[Seen], bool]:
    """Every element within rtol of the largest."""
    return lambda seen: bool(((seen.actual - seen.expected).abs() <= rtol * seen.expected.abs().max()).all())


def _ratio(limit: float) -> Callable[[Seen], bool]:
    """The error against float64 within `limit` times the single-core model's."""
    return lambda seen: bool((seen.actual - seen.oracle).norm() <= limit * (seen.expected - seen.oracle).norm())


def _cosine(least: float) -> Callable[[Seen], bool]:
    return lambda seen: bool(
        torch.nn.functional.cosine_similarity(seen.actual.flatten(), seen.expected.flatten(), dim=0) >= least
    )


PEERS = (
    Peer(
        name="0.5 weights, torch.allclose",
        dtype="float32",
        init="constant",
        content=_allclose(rtol=1e-5, atol=1e-8),
    ),
    Peer(name="rtol 0.05, atol 5.0", dtype="bfloat16", init="discriminating", content=_allclose(rtol=0.05, atol=5.0)),
    Peer(name="1e-5 / 1e-5", dtype="float32", init="discriminating", content=_allclose(rtol=1e-5, atol=1e-5)),
    Peer(name="0.05 of the maximum", dtype="bfloat16", init="discriminating", content=_largest(0.05)),
    Peer(name="R < 1.2, unlocked", dtype="bfloat16", init="discriminating", content=_ratio(1.2)),
    Peer(name="cosine >= 0.99", dtype="bfloat16", init="discriminating", content=_cosine(0.99)),
)
OURS = "tp-harness verify"
EXACTLY = f"{OURS} --dtype exact"
