"""A wrong value carried on, in float64, to the tensor that was looked at, by the steps that families know."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch

from ..judge.gather import join
from ..models import knowledge
from .site import Site, UnavailableError

Value = torch.Tensor | Sequence[torch.Tensor]
Step = tuple[str, Callable[[torch.Tensor], torch.Tensor]]  # the next leaf, and how its full value follows


def carry(site: Site, value: Value) -> Value:
    """A guess at the site's leaf, as it shows in the tensor that was looked at."""
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
    """The sum of all ranks' parts."""
    return torch.stack(list(parts)).sum(dim=0)
