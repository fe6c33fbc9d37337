"""Signatures of an own module that looks things up in its shard of a tensor of which every rank needs all.

A rank that holds rows of quantised weights, say, may need the scale of any group. What it finds in its shard instead,
by an index modulo the shard's length or clamped to it, is what the reference finds in the shard repeated so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

from ..parallel.placements import Shard
from .own import cut_tensors, held, made, only, own_tensors, rerun, same
from .signature import Guess, Signature
from .site import Site, UnavailableError

FILLS: dict[str, Callable[[torch.Tensor, int], torch.Tensor]] = {
    "modulo its length": lambda shard, length: shard.repeat(length // len(shard), *[1] * (shard.ndim - 1)),
    "no further than its end": lambda shard, length: shard[torch.arange(length).clamp(max=len(shard) - 1)],
}


def in_a_shard(site: Site) -> Iterator[Guess]:
    """Every rank's summand, made with its shard of one tensor as the whole; raises UnavailableError at one rank."""
    if site.tp == 1:
        raise UnavailableError
    cut = cut_tensors(site)
    summed = [name for name in cut if _adds_up(site, name)]
    for name, placement in cut.items():
        for other in summed:
            if isinstance(placement, Shard) and other != name:
                for text, fill in FILLS.items():
                    how = partial(_total, name=name, other=other, fill=fill)
                    yield from made(site, how, f"{name}, {text},")


def _total(site: Site, name: str, other: str, fill: Callable[[torch.Tensor, int], torch.Tensor]) -> torch.Tensor:
    """The sum of what ranks make of their parts of `other`, each with its own shard of `name`."""
    placement, table = cut_tensors(site)[name], own_tensors(site)[name]
    assert isinstance(placement, Shard)  # the others are not asked for
    total = torch.zeros_like(site.right)
    for rank in range(site.tp):
        shard = placement.shard(table, rank, site.tp).movedim(placement.dim, 0)
        filled = fill(shard, table.shape[placement.dim]).movedim(0, placement.dim)
        total = total + rerun(site, {name: filled} | _parts(site, other, [rank])) - _nothing(site, other)
    return total + _nothing(site, other)


def _parts(site: Site, name: str, ranks: list[int]) -> dict[str, torch.Tensor]:
    at = held(site, name, cut_tensors(site)[name])
    return {name: only(own_tensors(site)[name], [at[rank] for rank in ranks])}


def _nothing(site: Site, name: str) -> torch.Tensor:
    """What the reference gives without it."""
    key = f"nothing of {name} in {site.traced.name} {site.rounded}"
    if key not in site.memo:
        site.memo[key] = rerun(site, {name: torch.zeros_like(own_tensors(site)[name])})
    found: torch.Tensor = site.memo[key]
    return found


def _adds_up(site: Site, name: str) -> bool:
    """Whether what even and odd ranks' parts give adds up to what all give."""
    try:
        halves = [rerun(site, _parts(site, name, list(range(first, site.tp, 2)))) for first in (0, 1)]
        return same(halves[0] + halves[1] - _nothing(site, name), site.right)
    except UnavailableError:
        return False


INDICES = (
    Signature(
        name="shard instead of whole",
        sentence="ranks look things up in their shard of {detail} where they need all of it",
        on=("output",),
        guess=in_a_shard,
        level=1,  # any mistake that keeps a rank to its own features can look like it
    ),
)
