"""Explains a mismatch: which tensor went wrong first, and which known mistake reproduces its numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch

from ..judge.distance import distance
from ..judge.evidence import Evidence
from ..judge.shape_checks import RANDOM
from ..parallel.placements import Placement, PlacementError, Replicate, Shard
from ..prepare.oracle import Tapped
from ..results.result import Divergence, Result
from . import Signature, Site, all_signatures, as_output, diagnose, is_known, site_of
from .localise import divergences, first_divergence
from .trace import Traced

REPEATS = 1e-9  # float64 rounds below it, in whatever order it sums
First = tuple[Divergence, Traced | None] | None  # the first divergence, as localise.py finds it
NUMBERS = ("value", "replicas")  # kinds of divergence whose numbers a signature can reproduce


@torch.no_grad()
def explain(evidence: Evidence, result: Result, signatures: Sequence[Signature] | None = None) -> Result:
    """The result with its first divergence and what reproduces it; the ranks of the evidence ran with taps on."""
    signatures = all_signatures() if signatures is None else signatures
    tapped = evidence.expectation.run_tapped(evidence.dtype)
    before = (evidence.expectation.oracle_of(evidence.dtype, i) for i in range(len(tapped.oracle.outputs)))
    runs = zip(tapped.oracle.outputs, before, strict=True)
    if any(distance(again, first, 1).rel_l2 > REPEATS for again, first in runs):
        return replace(result, notes=(*result.notes, RANDOM))
    try:
        evidence, first, notes = _placed(evidence, tapped)
    except PlacementError as error:  # a user's, of a tap
        return replace(result, notes=(*result.notes, f"what went wrong first was not found out: {error}"))
    result = replace(result, notes=(*result.notes, *notes))
    if first is None:
        return result
    divergence, traced = first
    if traced is None or divergence.kind not in NUMBERS:
        return replace(result, first_divergence=divergence)
    site = site_of(evidence, tapped, traced, divergence.ranks)
    leaves = [site.target, *_unseen(evidence, divergence, traced, site.owner)]
    found = diagnose(site, leaves, signatures)
    for place in _own_places(evidence, tapped, site):
        if not found.causes:
            found = diagnose(place, [place.target], signatures).after(found)
    return replace(
        result,
        first_divergence=divergence,
        diagnosis=found.causes,
        alternatives=found.alternatives,
        refuted=found.refuted,
        hypotheses=found.tried,
    )


def _own_places(evidence: Evidence, tapped: Tapped, site: Site) -> Iterator[Site]:
    """Where an own module may tell what is wrong: its first wrong tensor, and then its outputs that are wrong."""
    if is_known(tapped.reference):
        return
    if site.target != "output":
        yield as_output(site)
    for divergence, traced in divergences(evidence, tapped):
        output = traced and traced.name.startswith("output.") and traced.name != site.traced.name
        if traced and output and divergence.kind in NUMBERS:
            yield as_output(site_of(evidence, tapped, traced, divergence.ranks))


def _placed(evidence: Evidence, tapped: Tapped) -> tuple[Evidence, First, list[str]]:
    """The evidence with the placements by which its taps are right, the first divergence then, and notes on these taps.

    Where ranks hold the right numbers, cut in another way than the case says, the case is wrong and not the tensor.
    """
    notes: list[str] = []
    found = first_divergence(evidence, tapped)
    while found and not is_known(tapped.reference) and (said := evidence.case.taps.get(found[0].tensor)):
        name = found[0].tensor
        others = (Replicate(), *map(Shard, range(tapped.oracle.taps[name].ndim)))
        suits = next(filter(None, map(partial(_placed_otherwise, evidence, tapped, name), others)), None)
        if suits is None:
            break
        evidence, found = suits
        notes.append(f"tap {name} is right as {evidence.case.taps[name]}, so that {said} in `taps` must be a slip")
    return evidence, found, notes


def _placed_otherwise(
    evidence: Evidence, tapped: Tapped, name: str, placement: Placement
) -> tuple[Evidence, First] | None:
    """The evidence with this placement of the tap, and the first divergence then; None if that is still the tap."""
    changed = replace(evidence, case=replace(evidence.case, taps=dict(evidence.case.taps) | {name: placement}))
    try:
        found = first_divergence(changed, tapped)
    except PlacementError:
        return None
    return None if found and found[0].tensor == name else (changed, found)


def _unseen(evidence: Evidence, found: Divergence, traced: Traced, owner: str) -> list[str]:
    """Leaves of the same module between the last right tensor and the first wrong one, which were not tapped."""
    names = list(evidence.case.taps)
    start = names.index(found.after) + 1 if found.after in names else 0
    end = names.index(traced.name) if traced.name in names else len(names)
    between = [name.rpartition(".") for name in names[start:end]]
    return [leaf for prefix, _, leaf in between if prefix == owner]
