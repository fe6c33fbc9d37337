"""Signatures of RMSNorm: epsilon, what the mean runs over, and its scale."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from ....diagnosis.signature import Guess, Signature
from ....diagnosis.site import Site, UnavailableError
from ....reference import gpt_oss

EPSILONS = (0.0, 1e-12, 1e-8, 1e-6, 1e-4, 1e-3)


def _norm(site: Site) -> gpt_oss.RMSNorm:
    module = site.module if isinstance(site.module, gpt_oss.RMSNorm) else getattr(site.module, "norm", None)
    if not isinstance(module, gpt_oss.RMSNorm):
        raise UnavailableError
    return module


def _normed(
    site: Site, mean_square: torch.Tensor, *, scale: torch.Tensor | None = None, eps: float | None = None
) -> torch.Tensor:
    norm = _norm(site)
    scale = norm.scale.to(torch.float64) if scale is None else scale
    eps = norm.eps if eps is None else eps
    return site.input * torch.rsqrt(mean_square.to(torch.float64) + eps) * scale


def _mean_square(x: torch.Tensor) -> torch.Tensor:
    return x.square().mean(dim=-1, keepdim=True)


def epsilon(site: Site) -> Iterator[Guess]:
    """Other values of epsilon that are in use."""
    for eps in EPSILONS:
        if eps != _norm(site).eps:
            yield Guess(_normed(site, _mean_square(site.input), eps=eps), f"{eps:g}, not {_norm(site).eps:g}")


def _must_be_tapped(site: Site) -> None:
    """Raise UnavailableError where the norm's own output was not recorded, so that a later tensor was looked at."""
    if site.leaf != site.target:
        raise UnavailableError


def over_a_shard(site: Site) -> Iterator[Guess]:
    """The mean over rank 0's share of the features on all ranks, or over each rank's own.

    Raises:
        UnavailableError: at one rank, or where tp does not divide the features.
    """
    if site.tp == 1 or site.input.shape[-1] % site.tp:
        raise UnavailableError
    parts = [_normed(site, _mean_square(part)) for part in site.input.chunk(site.tp, dim=-1)]
    yield Guess(parts[0], "rank 0's share on all ranks")
    yield Guess(parts, "a rank's own share")


def first_features(site: Site) -> Iterator[Guess]:
    """The mean over the first features: as many as explain the token that is farthest off."""
    _must_be_tapped(site)
    x, right = site.input, _mean_square(site.input)
    seen = site.traced.full.to(torch.float64)
    token = (seen - site.traced.expected).norm(dim=-1).argmax()
    ratio = (seen.flatten(0, -2)[token].norm() / site.traced.expected.flatten(0, -2)[token].norm()).square()
    counts = torch.arange(1, x.shape[-1] + 1)
    means = x.flatten(0, -2)[token].square().cumsum(0) / counts
    count = int(((right.flatten()[token] + _norm(site).eps) / (means + _norm(site).eps) / ratio - 1).abs().argmin()) + 1
    if count < x.shape[-1]:
        yield Guess(_normed(site, _mean_square(x[..., :count])), f"the first {count} features")


def padded_width(site: Site) -> Iterator[Guess]:
    """The sum of squares over a larger width: the nearest whole number that the factor tells."""
    _must_be_tapped(site)
    x = site.input
    large = _mean_square(x) > 100 * _norm(site).eps  # where epsilon hardly matters
    seen, right = (side.to(torch.float64) * large for side in (site.traced.full, site.traced.expected))
    width = round((seen.square().sum() / right.square().sum()).item() * x.shape[-1])
    if width > x.shape[-1]:
        yield Guess(_normed(site, _mean_square(x) * x.shape[-1] / width), f"{width}, not {x.shape[-1]}")


def scale_moved(site: Site) -> Iterator[Guess]:
    """norm.scale shifted by one or by a shard, or reversed."""
    scale, mean = _norm(site).scale.to(torch.float64), _mean_square(site.input)
    for shift in {1, -1, len(scale) // site.tp, -(len(scale) // site.tp)} - {0, len(scale)}:
        yield Guess(_normed(site, mean, scale=scale.roll(shift)), f"shifted by {shift}")
    yield Guess(_normed(site, mean, scale=scale.flip(0)), "reversed")


def scale_ignored(site: Site) -> Iterator[Guess]:
    """The input divided by its root mean square, and not scaled."""
    yield Guess(_normed(site, _mean_square(site.input), scale=torch.ones(())))


def scale_of_a_rank(site: Site) -> Iterator[Guess]:
    """Each odd rank multiplies by another vector, the same for all tokens: fitted on half of the tokens."""
    _must_be_tapped(site)
    plain = _normed(site, _mean_square(site.input), scale=torch.ones(())).flatten(0, -2)
    right, values, odd = site.right, [], []
    clean = site.clean.norm()
    for rank, shard in enumerate(site.traced.shards):
        seen = shard.to(torch.float64).flatten(0, -2)
        half = slice(0, len(seen), 2)
        scale = (seen[half] * plain[half]).sum(dim=0) / plain[half].square().sum(dim=0)
        same = (seen - right.flatten(0, -2)).norm() < 3 * clean
        odd += [] if same else [rank]
        values.append(right if same else (plain * scale).view_as(right))
    if 0 < len(odd) < site.tp and len(plain) > 2:
        yield Guess(values, f"rank{'s' if len(odd) > 1 else ''} {', '.join(map(str, odd))}")


def in_bfloat16(site: Site) -> Iterator[Guess]:
    """The squares, or all of the mean, in bfloat16."""
    x = site.input
    yield Guess(_normed(site, _mean_square(x.to(torch.bfloat16))))
    yield Guess(_normed(site, _mean_square(x.to(torch.bfloat16).to(torch.float64))))


def _on_norm(name: str, sentence: str, guess: Callable[[Site], Iterator[Guess]], level: int = 0) -> Signature:
    return Signature(name=name, sentence=sentence, on=("norm",), guess=guess, level=level)


NORM = (
    _on_norm("norm eps", "epsilon is {detail}", epsilon),
    _on_norm("norm over shard", "the mean square is {detail} instead of all features'", over_a_shard),
    _on_norm("norm over first features", "the mean square runs over {detail}", first_features),
    _on_norm("norm over padded width", "the sum of squares is divided by {detail}", padded_width),
    _on_norm("norm scale moved", "norm.scale is {detail}", scale_moved),
    _on_norm("norm scale ignored", "norm.scale is not applied", scale_ignored),
    _on_norm("norm scale of a rank", "{detail} multiplies by another norm.scale than the others", scale_of_a_rank, 1),
    _on_norm("norm in bfloat16", "the mean square is computed in bfloat16", in_bfloat16),
)
