"""Signatures of an own module whose ranks' parts are not added up: a sum over ranks is missing, or runs over some.

A rank then has what the reference gives when all that the other ranks hold of a parameter is zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from .own import classes, cut_tensors, groups, held, made, only, own_tensors, rerun
from .signature import Guess, Signature
from .site import Site, UnavailableError

NEAR = 0.1  # squared error that may be left of a rank's mismatch, for the other ranks to be computed too


def not_summed(site: Site) -> Iterator[Guess]:
    """Every rank goes on with what comes of its own part."""
    if site.tp > 1 and len(classes(site)) == site.tp:
        yield from _guesses(site)


def summed_in_groups(site: Site) -> Iterator[Guess]:
    """Groups of ranks that agree go on with what comes of their parts."""
    if 1 < len(classes(site)) < site.tp:
        yield from _guesses(site)


def _guesses(site: Site) -> Iterator[Guess]:
    if site.traced.summed:
        raise UnavailableError
    together = classes(site)
    some = "" if len(together) == site.tp else f" in groups such as ranks {together[0]}"
    for names in groups(cut_tensors(site)):
        if _near(site, list(names), together[0]):
            yield from made(site, partial(_of_parts, names=list(names)), ", ".join(names) + some)
    for names in groups(cut_tensors(site)):
        for summed in cut_tensors(site):
            if summed not in names and _near_difference(site, list(names), summed, together):
                how = partial(_then_summed, names=list(names), summed=summed)
                yield from made(site, how, ", ".join(names) + some)


def masked(site: Site, names: list[str], ranks: list[int]) -> dict[str, torch.Tensor]:
    """The named tensors, in their shapes and dtypes, with zeros outside of what these ranks hold."""
    placements, tensors = cut_tensors(site), own_tensors(site)
    of = {name: held(site, name, placements[name]) for name in names}
    return {name: only(tensors[name], [of[name][rank] for rank in ranks]) for name in names}


def _of_parts(site: Site, names: list[str]) -> list[torch.Tensor]:
    """Each rank's, with what it and those that it agrees with hold."""
    found: dict[int, torch.Tensor] = {}
    for ranks in classes(site):
        found |= dict.fromkeys(ranks, rerun(site, masked(site, names, ranks)))
    return [site.traced.shard_of(found[rank], rank) for rank in range(site.tp)]


def _near(site: Site, names: list[str], ranks: list[int]) -> bool:
    """Whether it is like what the first of these ranks has."""
    rank = ranks[0]
    try:
        guess = site.traced.shard_of(rerun(site, masked(site, names, ranks)), rank)
    except UnavailableError:
        return False
    seen, right = site.traced.shards[rank].to(torch.float64), site.shards(site.right)[rank]
    return bool((seen - guess).square().sum() <= NEAR * (seen - right).square().sum())


def _then_summed(site: Site, names: list[str], summed: str) -> list[torch.Tensor]:
    """Each rank's own, and after it a sum over all ranks of what comes of `summed`."""
    nothing = {summed: torch.zeros_like(own_tensors(site)[summed])}
    together = classes(site)
    alone = {rank: rerun(site, masked(site, names, ranks) | nothing) for ranks in together for rank in ranks}
    total = torch.zeros_like(site.right)
    for ranks in together:
        for rank in ranks:
            changed = masked(site, names, ranks) | masked(site, [summed], [rank])
            total = total + rerun(site, changed) - alone[rank]
    return [site.traced.shard_of(alone[rank] + total, rank) for rank in range(site.tp)]


def _near_difference(site: Site, names: list[str], summed: str, together: list[list[int]]) -> bool:
    """Whether the first and the last rank differ by what their own parts make without the sum."""
    nothing = {summed: torch.zeros_like(own_tensors(site)[summed])}
    if site.traced.placement.split(site.right, site.tp)[0].shape != site.right.shape:
        return False
    try:
        first, last = (rerun(site, masked(site, names, ranks) | nothing) for ranks in (together[0], together[-1]))
    except UnavailableError:
        return False
    seen = [site.traced.shards[ranks[0]].to(torch.float64) for ranks in (together[0], together[-1])]
    difference = seen[0] - seen[1]
    return bool((difference - (first - last)).square().sum() <= NEAR**2 * difference.square().sum())


def dropped(site: Site) -> Iterator[Guess]:
    """All ranks have the sum without one rank's part, or with it twice; of all ranks, the one that explains most.

    Raises:
        UnavailableError: below three ranks, or where ranks hold different bits.
    """
    if site.tp < 3 or len(classes(site)) != 1:
        raise UnavailableError
    seen = site.traced.full.to(torch.float64)
    for names in groups(cut_tensors(site)):
        if len(names) > 1:
            continue
        [name] = names
        parts = [rerun(site, masked(site, [name], [rank])) for rank in range(site.tp)]
        nothing = rerun(site, {name: torch.zeros_like(own_tensors(site)[name])})
        for text, factor in (("is not in the sum", 0.0), ("is in the sum twice", 2.0)):
            value = [site.right + (factor - 1) * (part - nothing) for part in parts]
            rank = min(range(site.tp), key=lambda rank: (seen - value[rank]).norm().item())
            how = partial(_counted, name=name, rank=rank, factor=factor)
            yield from made(site, how, f"rank {rank}'s part of what {name} contributes {text}")


def _counted(site: Site, name: str, rank: int, factor: float) -> torch.Tensor:
    tensor = own_tensors(site)[name].to(torch.float64)
    own = only(tensor, [held(site, name, cut_tensors(site)[name])[rank]])
    return rerun(site, {name: tensor + (factor - 1) * own})


PARTS = (
    Signature(
        name="all-reduce missing",
        sentence="every rank goes on with what its own part of {detail} gives: an all_reduce is missing",
        on=("output",),
        guess=not_summed,
    ),
    Signature(
        name="reduced in subgroups",
        sentence="ranks go on with what parts of {detail} give, instead of all {tp}: they are summed in subgroups",
        on=("output",),
        guess=summed_in_groups,
    ),
    Signature(name="rank miscounted", sentence="{detail}", on=("output",), guess=dropped),
)
