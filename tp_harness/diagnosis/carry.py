"""A wrong value of one tap, carried on in float64 to the tensor that was looked at, by the steps that families know."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch

from ..judge.gather import join
from ..models import knowledge
from .site import Site, UnavailableError

Value = torch.Tensor | Sequence[torch.Tensor]
Step = tuple[str, Callable[[torch.Tensor], torch.Tensor]]  # the next leaf, and how its full value follows


def carry(site: Site, value: Value) -> Value:
    """Carry a guess at the site's leaf on to the tensor that was looked at; at that leaf it stays as it is.

    Args:
        value: as many float64 elements as the leaf's full tensor, in any shape, or one shard per rank.

    Returns:
        The full float64 tensor at `site.target`.

    Raises:
        UnavailableError: no family knows a step from the leaf on.
        PlacementError: the shards cannot be joined.
    """
    if site.leaf == site.target:
        return value
    leaf, full = site.leaf, value
    if not isinstance(full, torch.Tensor):
        full = join(site.evidence.case.taps[site.name(leaf)], list(full)).full
    steps: dict[str, Step] = {leaf: step for known in knowledge() for leaf, step in known.steps(site).items()}
    while leaf != site.target:
        if leaf not in steps:
            raise UnavailableError
        following, step = steps[leaf]
        full = step(full.reshape(site.tap(leaf).shape))
        leaf = following
    return full


def sum_of(parts: Iterable[torch.Tensor]) -> torch.Tensor:
    """The sum of all ranks' parts, in the one shape and dtype that they have."""
    return torch.stack(list(parts)).sum(dim=0)
