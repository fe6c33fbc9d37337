"""A site whose tensors carry the numbers of a run in exact arithmetic, so that a signature's guess has residues.

What a signature computes of them, it computes exactly; a guess with the residues that the ranks have is no resemblance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count, takewhile
from typing import TypeVar

import torch

from ..arithmetic.exact import Exact
from ..case.state_dict import weights_of
from ..judge.evidence import Evidence
from ..judge.gather import RankOutput
from ..prepare.oracle import ReferenceRun, Tapped
from ..ranks.rank_report import TensorKey
from .site import Site

K = TypeVar("K")
NUMBERED = "the site with numbers"


def numbered(site: Site) -> Site:
    """The same place of a run in exact arithmetic, with numbers beside each of its tensors.

    Use what it gives inside `arithmetic.computing()`.
    """
    if NUMBERED not in site.memo:
        site.memo[NUMBERED] = _with_numbers(site)
    found: Site = site.memo[NUMBERED]
    return found.at(site.leaf)


def _with_numbers(site: Site) -> Site:
    expectation, traced = site.evidence.expectation, site.traced
    exact = expectation.exact()
    tapped, evidence = _tapped(site, exact), _evidence(site.evidence, exact)
    run, tap = tapped.oracle, traced.name in tapped.oracle.taps
    expected = (run.taps if tap else run.outputs)[traced.name]
    own = evidence.shards(traced.name, "tap" if tap else "locked")
    shards = tuple(x.reshape(shadow.shape) for x, shadow in zip(own, traced.shards, strict=True))
    with_numbers = replace(traced, shards=shards, expected=expected, baseline=expected, bits=traced.digests)
    return replace(site, arithmetic=exact, evidence=evidence, tapped=tapped, traced=with_numbers, memo={})


def _tapped(site: Site, exact: Exact) -> Tapped:
    """The reference with its parameters and inputs as variables, and its run with the numbers that it left."""
    tapped, prefix, tied = site.tapped, site.evidence.case.prefix, site.evidence.expectation.tied
    for name, tensor in weights_of(tapped.reference, "the reference").items():
        exact.draw(tied.get(prefix + name, prefix + name), tensor)
    run = _run(tapped.oracle, exact)
    return replace(tapped, calls=tapped.calls.changed(exact.draw), oracle=run, baseline=run)


def _run(run: ReferenceRun, exact: Exact) -> ReferenceRun:
    outputs, taps = (Numbered(exact, own, lambda name: run.residues.get(name, ())) for own in (run.outputs, run.taps))
    return replace(run, outputs=outputs, taps=taps)


def _evidence(evidence: Evidence, exact: Exact) -> Evidence:
    """What the ranks left, with numbers."""

    def of_rank(output: RankOutput) -> RankOutput:
        def residues(key: TensorKey) -> Sequence[torch.Tensor]:
            keys = takewhile(output.tensors.__contains__, map(key.modulo, count()))
            return [output.tensors[key] for key in keys]

        return replace(output, tensors=Numbered(exact, output.tensors, residues))

    return replace(evidence, ranks={rank: of_rank(output) for rank, output in evidence.ranks.items()})


class Numbered(Mapping[K, torch.Tensor]):
    """Tensors of any shape with numbers, each made when it is first asked for.

    Args:
        exact: whose memory holds the numbers.
        shadows: float64, or whole numbers.
        residues: of a key, those of its tensor as `Exact.split` orders them.
    """

    def __init__(
        self, exact: Exact, shadows: Mapping[K, torch.Tensor], residues: Callable[[K], Sequence[torch.Tensor]]
    ) -> None:
        self.exact, self.shadows, self.residues = exact, shadows, residues
        self._made: dict[K, torch.Tensor] = {}

    def __getitem__(self, key: K) -> torch.Tensor:
        if key not in self._made:
            self._made[key] = self.exact.joined(self.shadows[key], self.residues(key))
        return self._made[key]

    def __iter__(self) -> Iterator[K]:
        return iter(self.shadows)

    def __len__(self) -> int:
        return len(self.shadows)
