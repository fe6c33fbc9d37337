"""Signatures of the rotary embedding: which pairs are rotated, by which angle, and with which factor."""

from __future__ import annotations

import math
from collections.abc import Iterator
from copy import copy

import torch

from ....diagnosis.signature import Guess, Signature
from ....diagnosis.site import Site
from ....reference import rotary
from .replay import attention_of, projected

LEAVES = ("q_rope", "k_rope", "value")
ROTATED = LEAVES[:2]


def unrotated(site: Site) -> torch.Tensor:
    """The leaf's float64 tensor (..., heads, head_dim) before rotation."""
    if isinstance(site.module, rotary.RotaryEmbedding):
        return site.inputs[ROTATED.index(site.leaf)].to(torch.float64)
    return projected(site)[LEAVES.index(site.leaf)]


def tables(site: Site, positions: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin of `positions` (batch, seq) int64: (batch, seq, 1, head_dim / 2), rounded as in the site's run."""
    return _tables(site, _rope(site), site.positions if positions is None else positions)


def _tables(site: Site, rope: rotary.RotaryEmbedding, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    cos, sin = (x.unsqueeze(-2).to(site.tables) for x in rope.cos_sin(positions))
    return cos, sin


def _rope(site: Site) -> rotary.RotaryEmbedding:
    return site.module if isinstance(site.module, rotary.RotaryEmbedding) else attention_of(site).rope


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate the first half of each head, (..., head_dim), against the second; same shape and dtype out."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def which(site: Site) -> str:
    """What the leaf is called."""
    return {"q_rope": "query", "k_rope": "key", "value": "value"}[site.leaf]


def interleaved(site: Site) -> Iterator[Guess]:
    """Pairs (x[2i], x[2i + 1]) rotated, and put back interleaved or as halves."""
    x, (cos, sin) = unrotated(site), tables(site)
    first, second = x[..., ::2], x[..., 1::2]
    turned = (first * cos - second * sin, second * cos + first * sin)
    yield Guess(torch.stack(turned, dim=-1).flatten(-2))
    yield Guess(torch.cat(turned, dim=-1))


def not_applied(site: Site) -> Iterator[Guess]:
    """Query or key as projected."""
    yield Guess(unrotated(site), which(site))


def backwards(site: Site) -> Iterator[Guess]:
    """The angle negated."""
    cos, sin = tables(site)
    yield Guess(rotate(unrotated(site), cos, -sin))


def offset_by_rank(site: Site) -> Iterator[Guess]:
    """Positions r higher, lower, or a whole sequence further on rank r."""
    seq = site.positions.shape[-1]
    parts = site.shards(unrotated(site))
    for step in (1, -1, seq, seq // site.tp) if site.tp > 1 else ():
        turned = (rotate(part, *tables(site, site.positions + step * r)) for r, part in enumerate(parts))
        yield Guess(list(turned), f"{step} x rank")


def positions_ignored(site: Site) -> Iterator[Guess]:
    """0, 1, ... or 1, 2, ... in each row."""
    count = torch.arange(site.positions.shape[-1]).expand(site.positions.shape)
    for start in (0, 1):
        if not torch.equal(count + start, site.positions):
            yield Guess(rotate(unrotated(site), *tables(site, count + start)), f"{start}")


def no_concentration(site: Site) -> Iterator[Guess]:
    """Unscaled cos and sin: made so, or divided after they were rounded."""
    if _rope(site).concentration != 1.0:
        plain = copy(_rope(site))
        plain.concentration = 1.0
        yield Guess(rotate(unrotated(site), *_tables(site, plain, site.positions)))
        scale = torch.tensor(_rope(site).concentration, dtype=site.tables)
        yield Guess(rotate(unrotated(site), *(table / scale for table in tables(site))))


def no_interpolation(site: Site) -> Iterator[Guess]:
    """Plain frequencies, theta^(-2i/d), with and without YaRN's concentration."""
    half = len(_rope(site).inv_freq)
    theta = _rope(site).inv_freq[1].item() ** -half  # the fast pairs keep their frequency
    for factor in (1.0, _rope(site).concentration):
        plain = rotary.RotaryEmbedding(2 * half, _whole(theta), torch.float32)
        plain.concentration = factor
        yield Guess(rotate(unrotated(site), *_tables(site, plain, site.positions)))


def _whole(number: float) -> float:
    """The whole number that it is, but for rounding."""
    return round(number) if math.isclose(number, round(number), rel_tol=1e-12) else number


ROTATION = (
    Signature(
        name="rope interleaved",
        sentence="the rotation pairs neighbouring elements instead of the two halves of a head",
        on=ROTATED,
        guess=interleaved,
    ),
    Signature(name="rope not applied", sentence="the {detail} is not rotated", on=ROTATED, guess=not_applied),
    Signature(name="rope backwards", sentence="the rotation runs backwards", on=ROTATED, guess=backwards),
    Signature(name="rope offset by rank", sentence="positions are off by {detail}", on=ROTATED, guess=offset_by_rank),
    Signature(
        name="rope positions ignored",
        sentence="position_ids are ignored: positions count from {detail}",
        on=ROTATED,
        guess=positions_ignored,
    ),
    Signature(
        name="yarn concentration missing",
        sentence="cos and sin lack YaRN's concentration, 0.1 ln(scaling factor) + 1",
        on=ROTATED,
        guess=no_concentration,
    ),
    Signature(
        name="yarn missing",
        sentence="the frequencies are plain RoPE's, without YaRN's interpolation",
        on=ROTATED,
        guess=no_interpolation,
    ),
)
