"""Signatures of a module's output that need no tap: biases and reductions, as far as parameters tell.

Where the summands of every rank are known (a tap `partial`), those of a reduction are in sums.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import log

import torch

from ..parallel.placements import Partial, Replicate
from .common import LEAST_NUMBERS
from .signature import Guess, Signature
from .site import Site, UnavailableError


def biases(site: Site) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and float64 values, (features,), of replicated vectors as long as a token is wide: possible biases."""
    width = next(reversed(site.traced.expected.shape), 1)
    for name, parameter in site.tapped.reference.named_parameters():
        placement = site.evidence.case.plan.get(name, Replicate())
        if parameter.shape == (width,) and isinstance(placement, Replicate):
            yield name, parameter.detach().to(torch.float64)


def bias_times_tp(site: Site) -> Iterator[Guess]:
    """A replicated vector added by every rank before the reduction."""
    for name, bias in _output_biases(site):
        yield Guess(site.right + (site.tp - 1) * bias, name)


def bias_dropped(site: Site) -> Iterator[Guess]:
    """A replicated vector left out."""
    for name, bias in _output_biases(site):
        yield Guess(site.right - bias, name)


def bias_divided_by_tp(site: Site) -> Iterator[Guess]:
    """A share of a replicated vector, added once."""
    for name, bias in _output_biases(site):
        yield Guess(site.right - (1 - 1 / site.tp) * bias, name)


def _output_biases(site: Site) -> Iterator[tuple[str, torch.Tensor]]:
    yield from biases(site) if site.tp > 1 else ()


def mean_before_bias(site: Site) -> Iterator[Guess]:
    """A mean where a sum was meant, and a replicated vector added after it."""
    for name, bias in _output_biases(site):
        yield Guess((site.right - bias) / site.tp + bias, name)


def twice_before_bias(site: Site) -> Iterator[Guess]:
    """A sum of sums, and a replicated vector added after it."""
    for name, bias in _output_biases(site):
        yield Guess((site.right - bias) * site.tp + bias, name)


def residual_times_tp(site: Site) -> Iterator[Guess]:
    """An input added by every rank before the reduction."""
    for x in _alike(site) if site.tp > 1 else ():
        yield Guess(site.right + (site.tp - 1) * x, f"{site.tp} times instead of once")


def residual_dropped(site: Site) -> Iterator[Guess]:
    """An input that is not added."""
    yield from (Guess(site.right - x) for x in _alike(site))


def residual_of_rank_0(site: Site) -> Iterator[Guess]:
    """A slice of an input in the place of a rank's own, where tokens are cut.

    Raises:
        UnavailableError: at one rank, or where ranks hold the whole output or a summand of it.
    """
    if site.tp == 1 or isinstance(site.traced.placement, (Replicate, Partial)):
        raise UnavailableError
    for x in _alike(site):
        right, own = site.shards(site.right), site.shards(x)
        for of, text in ((lambda _rank: 0, "0"), (lambda rank: (rank + 1) % site.tp, "r + 1")):
            if own[0].shape == own[-1].shape:
                yield Guess([y - own[r] + own[of(r)] for r, y in enumerate(right)], text)


def _alike(site: Site) -> Iterator[torch.Tensor]:
    """The inputs in the form of what is wrong: what a module may add to its branch."""
    for x in site.inputs:
        if x.is_floating_point() and x.shape == site.right.shape:
            yield x.to(torch.float64)


def log_added(site: Site) -> Iterator[Guess]:
    """log(tp) too much or too little in every element, where the output is the logarithm of a sum."""
    if site.tp > 1:
        yield Guess(site.right + log(site.tp), "is added to")
        yield Guess(site.right - log(site.tp), "is missing from")


def constant_added(site: Site) -> Iterator[Guess]:
    """The same number added to every element."""
    number = (site.traced.full.to(torch.float64) - site.traced.expected).mean().item()
    if number and site.right.numel() >= LEAST_NUMBERS:
        yield Guess(site.right + number, f"{number:.6g}")


def summands_left(site: Site) -> Iterator[Guess]:
    """Ranks that differ, and whose outputs add up to the right one, but for what each of them added."""
    classes = _classes(site)
    if len(classes) == site.tp:
        yield from _add_up(site, classes, "")


def groups_left(site: Site) -> Iterator[Guess]:
    """Groups of ranks that agree inside, and whose outputs add up to the right one."""
    classes = _classes(site)
    sizes = {len(ranks) for ranks in classes}
    if 1 < len(classes) < site.tp and len(sizes) == 1:
        yield from _add_up(site, classes, f"groups of {sizes.pop()} ranks, such as {classes[0]}")


def _add_up(site: Site, classes: list[list[int]], detail: str) -> Iterator[Guess]:
    total = torch.stack([site.traced.shards[ranks[0]].to(torch.float64) for ranks in classes]).sum(dim=0)
    yield Guess(site.right, detail, seen=total)
    for name, bias in biases(site):
        value = site.right + (len(classes) - 1) * bias
        yield Guess(value, f"{detail}; each has added {name}", seen=total)


def _classes(site: Site) -> list[list[int]]:
    """Ranks that hold the same bits of what all should hold."""
    if not isinstance(site.traced.placement, Replicate) or site.leaf != "output":
        raise UnavailableError
    classes: dict[str, list[int]] = {}
    for rank, bits in enumerate(site.traced.digests):
        classes.setdefault(bits, []).append(rank)
    return list(classes.values())


OUTPUTS = (
    Signature(
        name="bias x tp",
        sentence="{detail} is added by every rank before the reduction, {tp} times instead of once",
        on=("output",),
        guess=bias_times_tp,
    ),
    Signature(name="bias dropped", sentence="{detail} is not added", on=("output",), guess=bias_dropped),
    Signature(
        name="bias / tp",
        sentence="{detail} is divided by {tp} and added once",
        on=("output",),
        guess=bias_divided_by_tp,
    ),
    Signature(
        name="divided by tp",
        sentence="before {detail} is added, it is divided by {tp}: a mean where a sum was meant",
        on=("output",),
        guess=mean_before_bias,
    ),
    Signature(
        name="times tp",
        sentence="before {detail} is added, it is {tp} times what it should be: reduced twice, or whole values summed",
        on=("output",),
        guess=twice_before_bias,
    ),
    Signature(
        name="residual x tp",
        sentence="the input is added {detail}: by every rank before the reduction",
        on=("output",),
        guess=residual_times_tp,
    ),
    Signature(
        name="residual of other rank",
        sentence="rank r adds rank {detail}'s slice of the input instead of its own",
        on=("output",),
        guess=residual_of_rank_0,
    ),
    Signature(
        name="log tp",
        sentence="log {tp} {detail} every element: the logarithm of a sum that counts every rank's whole, or of a mean",
        on=("output",),
        guess=log_added,
    ),
    Signature(
        name="constant added",
        sentence="{detail} is added to every element",
        on=("output",),
        guess=constant_added,
        level=2,
    ),
    Signature(name="residual dropped", sentence="the input is not added", on=("output",), guess=residual_dropped),
    Signature(
        name="all-reduce missing",
        sentence="the ranks' values add up to the right one, an all_reduce is missing{detail}",
        on=("output",),
        guess=summands_left,
    ),
    Signature(
        name="reduced in subgroups",
        sentence="the reduction ran inside {detail}; their values add up to the right one",
        on=("output",),
        guess=groups_left,
    ),
)
