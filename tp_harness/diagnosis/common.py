"""Signatures that any tensor can show: factors, permutations, and values in the place of others."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from ..case.taps import PER_EXPERT
from ..parallel.placements import Replicate
from .signature import Guess, Signature, shifted
from .site import Site, UnavailableError

MOST_ROWS = 2048  # each is compared with each
LEAST_NUMBERS = 8  # elements; a factor found from fewer says nothing


def scaled(site: Site) -> float:
    """The factor between what is seen and what is right, by least squares."""
    full, right = site.traced.full.to(torch.float64), site.traced.expected
    return ((full * right).sum() / right.square().sum()).item()


def times_tp(site: Site) -> Iterator[Guess]:
    """What is right times tp: it was summed once too often."""
    if site.tp > 1:
        yield Guess(site.right * site.tp, str(site.tp))


def divided_by_tp(site: Site) -> Iterator[Guess]:
    """What is right divided by tp: a mean in the place of a sum."""
    if site.tp > 1:
        yield Guess(site.right / site.tp, str(site.tp))


def by_a_factor(site: Site) -> Iterator[Guess]:
    """What is right times any other factor."""
    factor = scaled(site) if site.right.numel() >= LEAST_NUMBERS else 1.0
    if abs(factor - 1) > 1e-6 and factor:
        yield Guess(site.right * factor, f"{factor:.6g}")


def permuted(site: Site) -> Iterator[Guess]:
    """Blocks of ranks in other places: every block seen is some rank's right block."""
    mapping = block_mapping(site)
    if len(set(mapping)) > 1 and mapping != list(range(site.tp)):
        yield Guess(from_mapping(site, mapping), told(mapping))


def rank_0_everywhere(site: Site) -> Iterator[Guess]:
    """All ranks hold what rank 0 should."""
    if site.tp > 1:
        yield Guess(from_mapping(site, [0] * site.tp))


def tokens_permuted(site: Site) -> Iterator[Guess]:
    """Every token has another one's values."""
    order = _order(site, lambda x: x.reshape(-1, site.right.shape[-1]))
    yield Guess(site.right.reshape(len(order), -1)[order].reshape(site.right.shape), _listed(order))


def features_permuted(site: Site) -> Iterator[Guess]:
    """Every feature has another one's values."""
    order = _order(site, lambda x: x.reshape(-1, site.right.shape[-1]).T)
    yield Guess(site.right[..., order], _listed(order))


def _order(site: Site, rows: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """For each row of what is seen the nearest right one, if that puts all of them in another order.

    Raises:
        UnavailableError: it does not, or they are too many to compare each with each.
    """
    if site.traced.summed or site.leaf in PER_EXPERT or site.right.ndim < 2 or not site.right.is_floating_point():
        raise UnavailableError
    seen, right = rows(site.traced.full.to(torch.float64)), rows(site.right)
    if not 1 < len(right) <= MOST_ROWS:
        raise UnavailableError
    order = torch.cdist(seen, right, compute_mode="donot_use_mm_for_euclid_dist").argmin(dim=1)
    own = torch.arange(len(right))
    if torch.equal(order, own) or not torch.equal(order.sort().values, own):
        raise UnavailableError
    return order


def _listed(order: torch.Tensor) -> str:
    """The first places that moved."""
    moved = (order != torch.arange(len(order))).nonzero()[:, 0].tolist()
    words = ", ".join(f"{at} holds that of {int(order[at])}" for at in moved[:4])
    return words + (", ..." if len(moved) > 4 else "")


def axes_swapped(site: Site) -> Iterator[Guess]:
    """Batch and sequence exchanged, the shape kept.

    Raises:
        UnavailableError: fewer than three dimensions, one row, one token, or a sum over ranks.
    """
    right = site.right
    if right.ndim < 3 or 1 in right.shape[:2] or site.traced.summed:
        raise UnavailableError
    batch, seq = right.shape[:2]
    yield Guess(right.transpose(0, 1).reshape(right.shape), "written as (sequence, batch), read as (batch, sequence)")
    yield Guess(right.reshape(seq, batch, *right.shape[2:]).transpose(0, 1), "read as (sequence, batch)")


def gathered_elsewhere(site: Site) -> Iterator[Guess]:
    """Ranks' blocks of features that were stacked or joined along another dimension, and read as if along the last.

    Raises:
        UnavailableError: the tensor is not replicated, or has one dimension.
    """
    right, parts = site.right, blocks(site, "right")
    if not isinstance(site.traced.placement, Replicate) or right.ndim < 2:
        raise UnavailableError
    yield Guess(torch.stack(parts, dim=-1).reshape(right.shape), "rank by rank in turn")
    for dim in range(right.ndim - 1):
        yield Guess(torch.cat(parts, dim=dim).reshape(right.shape), f"one after the other along dimension {dim}")
        yield Guess(torch.stack(parts, dim=dim).reshape(right.shape), f"stacked along dimension {dim}")


def rows_of_first(site: Site) -> Iterator[Guess]:
    """Every row of the batch has the first one's values; raises UnavailableError where there is one row."""
    right = site.right
    if right.ndim < 3 or right.shape[0] == 1 or site.leaf in PER_EXPERT:
        raise UnavailableError
    yield Guess(right[:1].expand(right.shape))


def stale_tokens(site: Site) -> Iterator[Guess]:
    """The wrong tokens have their neighbour's values; raises UnavailableError without (batch, seq, ...) dimensions."""
    right, seen = site.right, site.traced.full.to(torch.float64)
    if right.ndim < 3 or site.leaf in PER_EXPERT:
        raise UnavailableError
    features = tuple(range(2, right.ndim))
    error, usual = (x.square().sum(features).sqrt() for x in (seen - right, site.clean))
    wrong = (error > 8 * usual.max()).reshape(*error.shape, *(1 for _ in features))
    for step in (1, -1):
        yield Guess(torch.where(wrong, right.roll(step, 1), right), "before" if step == 1 else "after")


def zeros(site: Site) -> Iterator[Guess]:
    """Features that are 0 in every token, and should not be; raises UnavailableError below two dimensions."""
    right, seen = site.right, site.traced.full
    if right.ndim < 2:
        raise UnavailableError
    empty = (seen == 0).flatten(0, -2).all(dim=0) & (right != 0).flatten(0, -2).any(dim=0)
    if empty.any() and not empty.all():
        first, last = int(empty.nonzero()[0]), int(empty.nonzero()[-1])
        yield Guess(
            torch.where(empty, torch.zeros_like(right), right), f"{int(empty.sum())} of them, {first} to {last}"
        )


def block_mapping(site: Site) -> list[int]:
    """For each rank, the rank whose right block is nearest to its own block.

    Raises:
        UnavailableError: the blocks have different shapes, or there are none (see `blocks`).
    """
    own, all_right = blocks(site, "seen"), blocks(site, "right")
    if len({block.shape for block in [*own, *all_right]}) > 1:
        raise UnavailableError
    seen, right = (torch.stack([b.flatten() for b in of]) for of in (own, all_right))
    distances = torch.cdist(seen, right, compute_mode="donot_use_mm_for_euclid_dist")
    index = torch.arange(site.tp)
    nearest = distances.argmin(dim=1)
    tied = distances[index, index] <= distances[index, nearest] * (1 + 1e-6)  # replicas: its own, rather than a copy's
    return torch.where(tied, index, nearest).tolist()


def blocks(site: Site, which: str) -> list[torch.Tensor]:
    """One float64 block per rank: its shard or, of a whole (..., features) tensor, its share (..., features / tp).

    Args:
        which: "seen", what the ranks hold, or "right", what they must hold.

    Raises:
        UnavailableError: one rank, a sum over ranks, no floating-point numbers, or features that tp does not divide.
    """
    traced = site.traced
    if traced.summed or site.tp == 1 or not traced.expected.is_floating_point() or not traced.expected.ndim:
        raise UnavailableError
    if not isinstance(traced.placement, Replicate):
        shards = traced.shards if which == "seen" else site.shards(site.right)
        return [shard.to(torch.float64) for shard in shards]
    if traced.expected.shape[-1] % site.tp:
        raise UnavailableError
    whole = traced.full if which == "seen" else site.right
    return list(whole.to(torch.float64).chunk(site.tp, dim=-1))


def from_mapping(site: Site, mapping: list[int]) -> torch.Tensor | list[torch.Tensor]:
    """The float64 tensor in which rank r has the right block of rank `mapping[r]`: full if replicated, else by rank.

    Raises:
        UnavailableError: the blocks have different shapes, or there are none (see `blocks`).
    """
    right = blocks(site, "right")
    if len({block.shape for block in right}) > 1:
        raise UnavailableError
    parts = [right[of] for of in mapping]
    return torch.cat(parts, dim=-1) if isinstance(site.traced.placement, Replicate) else parts


def told(mapping: list[int]) -> str:
    """The mapping (index: rank, value: the rank whose block it has) in words: by its rule, or number by number."""
    size = len(mapping)
    forms = {
        f"rank r has that of rank {shifted('r', step)} (modulo {size})": [(r + step) % size for r in range(size)]
        for step in (1, -1)
    }
    forms["in reverse order"] = list(range(size))[::-1]
    known = next((words for words, form in forms.items() if form == mapping), None)
    return known or f"ranks 0-{size - 1} have those of {', '.join(map(str, mapping))}"


COMMON = (
    Signature(
        name="times tp",
        sentence="it is {detail} times what it should be: reduced twice, or whole values were summed",
        guess=times_tp,
        level=1,
    ),
    Signature(
        name="divided by tp",
        sentence="it is what it should be divided by {detail}: a mean where a sum was meant",
        guess=divided_by_tp,
        level=1,
    ),
    Signature(name="scaled", sentence="it is {detail} times what it should be", guess=by_a_factor, level=2),
    Signature(name="rank 0 everywhere", sentence="every rank has rank 0's block", guess=rank_0_everywhere, level=1),
    Signature(name="blocks permuted", sentence="the ranks' blocks are permuted: {detail}", guess=permuted, level=1),
    Signature(
        name="gathered elsewhere",
        sentence="the ranks' blocks of features are gathered {detail}, and read as if along the last dimension",
        on=("output",),
        guess=gathered_elsewhere,
    ),
    Signature(
        name="row 0 everywhere", sentence="every row of the batch has row 0's values", guess=rows_of_first, level=1
    ),
    Signature(
        name="stale tokens",
        sentence="the wrong tokens have the values of the one {detail} them",
        guess=stale_tokens,
        level=1,
    ),
    Signature(name="zeros", sentence="features are 0 that should not be: {detail}", guess=zeros, level=2),
    Signature(
        name="tokens permuted", sentence="the tokens are in another order: {detail}", guess=tokens_permuted, level=2
    ),
    Signature(
        name="features permuted",
        sentence="the features are in another order: {detail}",
        guess=features_permuted,
        level=2,
    ),
    Signature(name="axes swapped", sentence="batch and sequence are exchanged: {detail}", guess=axes_swapped, level=1),
)
