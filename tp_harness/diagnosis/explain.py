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
from ..report.failure_text import ranks_text
from ..results.result import Divergence, Mistake, Result, Status
from ..results.tensor_names import call_of, is_result, of_call
from . import Diagnosis, Signature, Site, all_signatures, as_output, diagnose, is_known, site_of
from .localise import divergences, first_divergence, first_unequal
from .trace import Traced, in_order, with_grafts

REPEATS = 1e-9  # float64 rounds below it, in whatever order it sums
First = tuple[Divergence, Traced | None] | None  # the first divergence, as localise.py finds it
NUMBERS = ("value", "replicas")  # kinds of divergence whose numbers a signature can reproduce


@torch.no_grad()
def explain(evidence: Evidence, result: Result, signatures: Sequence[Signature] | None = None) -> Result:
    """The result with its first divergence and what reproduces it; the ranks of the evidence ran with taps on."""
    signatures = all_signatures() if signatures is None else signatures
    tapped = evidence.expectation.run_tapped(evidence.dtype)
    runs = (
        (again, evidence.expectation.oracle_of(evidence.dtype, name)) for name, again in tapped.oracle.outputs.items()
    )
    if any(distance(again, first).rel_l2 > REPEATS for again, first in runs):
        return replace(result, notes=(*result.notes, RANDOM))
    try:
        evidence, first, notes = _placed(evidence, tapped)
    except PlacementError as error:  # a user's, of a tap
        return replace(result, notes=(*result.notes, f"what went wrong first was not found out: {error}"))
    result = replace(result, notes=(*result.notes, *notes))
    if result.status is Status.NOT_PROVED:
        return _with_first_unequal(result, evidence, tapped)
    if first is None:
        return result
    divergence, traced = first
    found = _diagnosed(evidence, tapped, divergence, traced, signatures)
    return replace(
        result,
        first_divergence=divergence,
        diagnosis=found.causes,
        alternatives=found.alternatives,
        refuted=found.refuted,
        hypotheses=found.tried,
    )


def _with_first_unequal(result: Result, evidence: Evidence, tapped: Tapped) -> Result:
    """The result with a clause on the first tensor whose residues do not prove it; nothing says that it is wrong."""
    found = first_unequal(evidence, tapped)
    if found is None or result.proof is None:
        return result
    name, ranks = found
    clause = f"the first tensor whose residues are not equal is {name} on {ranks_text(ranks)}"
    return replace(result, reason=f"{result.reason}; {clause}", proof=replace(result.proof, first=clause))


@torch.no_grad()
def mistakes(evidence: Evidence, grafts: Sequence[str], explained: Result) -> list[Mistake]:
    """Every tensor that is wrong although the ranks went on with right values of `grafts`, with what reproduces it.

    Args:
        evidence: the ranks ran with taps on, and recorded their own values of `grafts` before these were replaced.
        grafts: names of taps.
        explained: the result of the run without grafts. What it says of its first divergence in a family's module holds
            here too; in an own module it may speak of the outputs.

    Returns:
        In order of execution; nothing after a tensor whose shape is wrong. A tensor that was put right counts as right
        for those after it.

    Raises:
        PlacementError: a user's placement cannot cut a tap.
    """
    tapped = evidence.expectation.run_tapped(evidence.dtype)
    order = ["", *in_order(tapped)]
    found: list[Mistake] = []
    for seen, traced in divergences(evidence, tapped):
        put_right = [mistake.divergence.tensor for mistake in found if mistake.divergence.tensor in grafts]
        divergence = replace(seen, after=max((seen.after, *put_right), key=order.index))
        passed_on = with_grafts(evidence, tapped, [name for name in grafts if name != divergence.tensor])
        first = explained.first_divergence
        if first and first.tensor == divergence.tensor and is_known(tapped.reference):
            told = Diagnosis(explained.diagnosis, explained.alternatives, explained.refuted)
        else:
            told = _diagnosed(passed_on, tapped, divergence, traced, all_signatures(), elsewhere=False)
        found.append(
            Mistake(divergence=divergence, causes=told.causes, alternatives=told.alternatives, refuted=told.refuted)
        )
    return found


def _diagnosed(
    evidence: Evidence,
    tapped: Tapped,
    divergence: Divergence,
    traced: Traced | None,
    signatures: Sequence[Signature],
    *,
    elsewhere: bool = True,
) -> Diagnosis:
    """What reproduces a divergence; `elsewhere`: an own module is also looked at in its outputs that are wrong."""
    if traced is None or divergence.kind not in NUMBERS:
        return Diagnosis()
    site = site_of(evidence, tapped, traced, divergence.ranks)
    if traced.residues:
        unequal = first_unequal(evidence, tapped)
        site = replace(site, proved=unequal is not None and unequal[0] == traced.name)
    leaves = [site.target, *_unseen(evidence, divergence, traced, site.owner)]
    found = diagnose(site, leaves, signatures)
    for place in _own_places(evidence, tapped, site, elsewhere=elsewhere):
        if not found.causes:
            found = diagnose(place, [place.target], signatures).after(found)
    return found


def _own_places(evidence: Evidence, tapped: Tapped, site: Site, *, elsewhere: bool) -> Iterator[Site]:
    """Where an own module may tell what is wrong: the wrong tensor, and then its outputs that are wrong."""
    if is_known(tapped.reference):
        return
    if site.target != "output":
        yield as_output(site)
    for divergence, traced in divergences(evidence, tapped):
        output = traced and is_result(traced.name) and traced.name != site.traced.name
        if elsewhere and traced and output and divergence.kind in NUMBERS:
            yield as_output(site_of(evidence, tapped, traced, divergence.ranks))


def placed(evidence: Evidence, tapped: Tapped) -> Evidence:
    """The evidence with the placements by which an own case's taps are right, as far as the first wrong tensor.

    Raises:
        PlacementError: a user's placement cannot cut a tap.
    """
    return _placed(evidence, tapped)[0]


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
    of_owner = of_call(call_of(traced.name), owner)
    between = [name.rpartition(".") for name in names[start:end]]
    return [leaf for prefix, _, leaf in between if prefix == of_owner]
