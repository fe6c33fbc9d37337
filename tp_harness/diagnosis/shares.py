"""Signatures of an own module whose ranks reduce over their share of the features: norms, softmax, a maximum.

The reference is run with one of its reductions done in as many blocks as there are ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

from .own import made, rerun
from .signature import Guess, Signature
from .site import Site, UnavailableError
from .watch import STATISTICS, Call, Watch, seen

MOST = 24  # reductions that are tried


def over_a_share(site: Site) -> Iterator[Guess]:
    """One reduction, or all of a kind and length, over each rank's share; raises UnavailableError at one rank."""
    if site.tp == 1:
        raise UnavailableError
    calls = seen(site).reductions[:MOST]
    for number, (name, length) in enumerate(calls):
        if length % site.tp == 0 and length > site.tp:
            text = f"{name} over {length} features (the reference's reduction {number + 1} of {len(calls)})"
            yield from made(site, _in_blocks({number}), text)
    for name, length in dict.fromkeys(calls):
        alike = {i for i, call in enumerate(calls) if call == (name, length)}
        if len(alike) > 1 and length % site.tp == 0 and length > site.tp:
            yield from made(site, _in_blocks(alike), f"each {name} over {length} features")


def left_out(site: Site) -> Iterator[Guess]:
    """A statistic by which something is divided or multiplied, taken for 1."""
    calls = seen(site).reductions[:MOST]
    for number, (name, length) in enumerate(calls):
        if name in STATISTICS:
            text = f"{name} over {length} features (the reference's reduction {number + 1} of {len(calls)})"
            yield from made(site, partial(_without, number=number), text)


def _without(site: Site, number: int) -> torch.Tensor:
    def change(at: int, call: Call) -> torch.Tensor:
        return torch.ones_like(call.again()) if at == number else call.again()

    return rerun(site, watched=Watch(change))


def _in_blocks(which: set[int]) -> Callable[[Site], torch.Tensor]:
    def how(site: Site) -> torch.Tensor:
        def change(number: int, call: Call) -> torch.Tensor:
            return call.in_blocks(site.tp) if number in which else call.again()

        return rerun(site, watched=Watch(change))

    return how


SHARES = (
    Signature(
        name="over a share",
        sentence="{detail} runs over a rank's share of them instead of all",
        on=("output",),
        guess=over_a_share,
    ),
    Signature(
        name="statistic left out",
        sentence="nothing is divided by, or multiplied with, the {detail}: it is taken for 1",
        on=("output",),
        guess=left_out,
    ),
)
