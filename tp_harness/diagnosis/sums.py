"""Signatures of a reduction whose summands are known: what came out of it, given what every rank put in."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from .signature import Guess, Signature
from .site import Site, UnavailableError


def summands(site: Site) -> list[torch.Tensor]:
    """Every rank's summand, float64, in the shape of the full sum; raises UnavailableError at one rank."""
    if site.tp == 1:
        raise UnavailableError
    return [part.reshape(site.traced.expected.shape) for part in site.ranks("partial")]


def not_reduced(site: Site) -> Iterator[Guess]:
    """Every rank goes on with its own summand."""
    yield Guess(summands(site))


def in_subgroups(site: Site) -> Iterator[Guess]:
    """Groups of neighbours, or of ranks a stride apart, sum among themselves."""
    parts = torch.stack(summands(site))
    for size in (n for n in range(2, site.tp) if site.tp % n == 0):
        blocks = parts.unflatten(0, (-1, size))
        neighbours = blocks.sum(1, keepdim=True).expand(blocks.shape).flatten(0, 1)
        yield Guess(list(neighbours), f"groups of {size} neighbouring ranks")
        apart = parts.unflatten(0, (size, -1))
        strided = apart.sum(0, keepdim=True).expand(apart.shape).flatten(0, 1)
        yield Guess(list(strided), f"groups of {size} ranks, {site.tp // size} apart")


def rank_dropped(site: Site) -> Iterator[Guess]:
    """The sum without one rank's part: the one that the difference is most like."""
    parts = summands(site)
    rank = _most_like(site, parts, sign=-1)
    yield Guess(sum(parts) - parts[rank], str(rank))


def rank_twice(site: Site) -> Iterator[Guess]:
    """The sum with one rank's part counted twice."""
    parts = summands(site)
    rank = _most_like(site, parts, sign=1)
    yield Guess(sum(parts) + parts[rank], str(rank))


def maximum(site: Site) -> Iterator[Guess]:
    """The largest or smallest of the summands in the place of their sum."""
    yield Guess(torch.stack(summands(site)).amax(dim=0), "max")
    yield Guess(torch.stack(summands(site)).amin(dim=0), "min")


def broadcast(site: Site) -> Iterator[Guess]:
    """One rank's summand, given to all."""
    parts = summands(site)
    if site.tp > 2:  # of two, it is a part that was dropped
        yield Guess(parts[0], "0")
        yield Guess(parts[-1], str(site.tp - 1))


def in_16_bits(site: Site) -> Iterator[Guess]:
    """Summands and running sums rounded to bfloat16, in rank order or in gloo's."""
    parts = [part.to(torch.bfloat16) for part in summands(site)]
    yield Guess(_running_sum(parts))
    if parts[0].numel() % site.tp == 0:  # gloo: chunk k is summed over ranks k - 1, k - 2, ..., k
        chunks = [part.flatten().chunk(site.tp) for part in parts]
        order = [[(k - 1 - i) % site.tp for i in range(site.tp)] for k in range(site.tp)]
        yield Guess(torch.cat([_running_sum([chunks[r][k] for r in order[k]]) for k in range(site.tp)]))


def _running_sum(parts: list[torch.Tensor]) -> torch.Tensor:
    total = parts[0].clone()
    for part in parts[1:]:
        total += part
    return total


def slices_gathered(site: Site) -> Iterator[Guess]:
    """Rank r's share of the features from rank r's summand."""
    parts = summands(site)
    if parts[0].shape[-1] % site.tp == 0:
        yield Guess(torch.cat([part.chunk(site.tp, -1)[rank] for rank, part in enumerate(parts)], dim=-1))


def _most_like(site: Site, parts: list[torch.Tensor], *, sign: int) -> int:
    """The rank whose part is nearest to `sign` times the difference between what is seen and the sum."""
    difference = site.traced.full.to(torch.float64) - sum(parts)
    return min(range(site.tp), key=lambda rank: (difference - sign * parts[rank]).norm().item())


SUMS = (
    Signature(
        name="all-reduce missing",
        sentence="every rank goes on with its own summand: an all_reduce is missing",
        on=("total",),
        guess=not_reduced,
    ),
    Signature(
        name="reduced in subgroups",
        sentence="the sum runs over {detail} instead of all {tp}",
        on=("total",),
        guess=in_subgroups,
    ),
    Signature(
        name="rank dropped", sentence="rank {detail}'s part is not in the sum", on=("total",), guess=rank_dropped
    ),
    Signature(
        name="rank counted twice", sentence="rank {detail}'s part is in the sum twice", on=("total",), guess=rank_twice
    ),
    Signature(
        name="other reduction", sentence="the ranks' parts are reduced by {detail}", on=("total",), guess=maximum
    ),
    Signature(
        name="broadcast instead of sum",
        sentence="all ranks have the part of rank {detail}: a broadcast instead of a sum",
        on=("total",),
        guess=broadcast,
    ),
    Signature(
        name="gathered instead of reduced",
        sentence="slices of the ranks' parts are gathered where the parts must be added",
        on=("total",),
        guess=slices_gathered,
    ),
    Signature(name="reduced in 16 bits", sentence="the parts are summed in bfloat16", on=("total",), guess=in_16_bits),
)
