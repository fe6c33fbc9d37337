"""Signatures of the vocabulary-parallel embedding: which tokens a rank takes for its own, and which row it reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from ....diagnosis.signature import Guess, Signature, shifted
from ....diagnosis.site import Site, UnavailableError
from ....reference import gpt_oss

Held = Callable[[torch.Tensor, int], torch.Tensor]  # (token - first of rank, tokens per rank) -> whether it is held


def _parts(
    site: Site, held: Held, first_of: Callable[[int, int], int] = lambda rank, count: rank * count, rows_of: int = 0
) -> Guess:
    """Every rank's rows, zeros for what it does not take for its own; in a sum, the sum.

    `rows_of`: rank r has the rows of rank r + rows_of.
    """
    module = site.module
    if not isinstance(module, gpt_oss.Embedding) or site.tp == 1:
        raise UnavailableError
    count = len(module.weight) // site.tp
    parts = []
    for rank in range(site.tp):
        local = site.input - first_of(rank, count)
        start = (rank + rows_of) % site.tp * count
        rows = module.weight[start + local.clamp(0, count - 1)].to(torch.float64)
        parts.append(rows * held(local, count)[..., None])
    return Guess(parts if site.leaf == "partial" else torch.stack(parts).sum(dim=0))


def not_masked(site: Site) -> Iterator[Guess]:
    """Rows of clamped tokens where zeros belong."""
    yield _parts(site, lambda i, n: torch.ones_like(i, dtype=torch.bool))


def off_by_one(site: Site) -> Iterator[Guess]:
    """Ranges that overlap by a token, or leave one out."""
    wrong: dict[str, Held] = {
        "one token too many at the end": lambda i, n: (i >= 0) & (i <= n),
        "one token too many at the start": lambda i, n: (i >= -1) & (i < n),
        "without its first token": lambda i, n: (i > 0) & (i < n),
        "without its last token": lambda i, n: (i >= 0) & (i < n - 1),
    }
    for detail, held in wrong.items():
        yield _parts(site, held)._replace(detail=detail)


def bounds_of_rank_0(site: Site) -> Iterator[Guess]:
    """Rank 0's range everywhere."""
    yield _parts(site, _inside, lambda _rank, _count: 0)


def bounds_of_next_rank(site: Site) -> Iterator[Guess]:
    """The next rank's range."""
    yield _parts(site, _inside, lambda rank, count: (rank + 1) % site.tp * count)


def rows_of_other_rank(site: Site) -> Iterator[Guess]:
    """The right range of tokens, and the rows of a neighbour."""
    for step in (1, -1):
        yield _parts(site, _inside, rows_of=step)._replace(detail=shifted("r", step))


def _inside(local: torch.Tensor, count: int) -> torch.Tensor:
    return (local >= 0) & (local < count)


EMBEDDED = ("partial", "total")

VOCABULARY = (
    Signature(
        name="vocabulary not masked",
        sentence="ranks add rows for tokens that they do not hold",
        on=EMBEDDED,
        guess=not_masked,
    ),
    Signature(
        name="vocabulary off by one", sentence="a rank's range of tokens is {detail}", on=EMBEDDED, guess=off_by_one
    ),
    Signature(
        name="vocabulary bounds of rank 0",
        sentence="all ranks use rank 0's range of tokens, on their own rows",
        on=EMBEDDED,
        guess=bounds_of_rank_0,
    ),
    Signature(
        name="vocabulary bounds of next rank",
        sentence="ranks use the range of tokens of the next rank",
        on=EMBEDDED,
        guess=bounds_of_next_rank,
    ),
    Signature(
        name="vocabulary rows of other rank",
        sentence="rank r has the rows of rank {detail}",
        on=EMBEDDED,
        guess=rows_of_other_rank,
    ),
)
