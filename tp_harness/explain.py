"""What a user asks after a mismatch: which tensor went wrong first, and what mistake does it look like?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from .compare import distance
from .diagnosis import SIGNATURES, Signature, diagnose, site_of
from .evidence import Evidence
from .localise import first_divergence
from .result import Divergence, Result
from .trace import Traced

REPEATS = 1e-9  # float64 rounds below it, in whatever order it sums
RANDOM = (
    "the reference gave other outputs when it was run again: it draws random numbers (dropout, say), and nothing can "
    "be compared with it"
)
NUMBERS = ("value", "replicas")  # kinds of divergence whose numbers a signature can reproduce


@torch.inference_mode()
def explain(evidence: Evidence, result: Result, signatures: Sequence[Signature] = SIGNATURES) -> Result:
    """The result with its first divergence and what reproduces it; the ranks of the evidence ran with taps on."""
    tapped = evidence.expectation.run_tapped(evidence.dtype)
    runs = zip(tapped.oracle.outputs, evidence.expectation.oracle.outputs, strict=True)
    if any(distance(again, before, 1).rel_l2 > REPEATS for again, before in runs):
        return replace(result, notes=(*result.notes, RANDOM))
    found = first_divergence(evidence, tapped)
    if found is None:
        return result
    divergence, traced = found
    if traced is None or divergence.kind not in NUMBERS:
        return replace(result, first_divergence=divergence)
    site = site_of(evidence, tapped, traced, divergence.ranks)
    leaves = [site.target, *_unseen(evidence, divergence, traced, site.owner)]
    causes, tried = diagnose(site, leaves, signatures)
    return replace(result, first_divergence=divergence, diagnosis=causes, hypotheses=tried)


def _unseen(evidence: Evidence, found: Divergence, traced: Traced, owner: str) -> list[str]:
    """Leaves of the same module between the last right tensor and the first wrong one, which were not tapped."""
    names = list(evidence.case.taps)
    start = names.index(found.after) + 1 if found.after in names else 0
    end = names.index(traced.name) if traced.name in names else len(names)
    between = [name.rpartition(".") for name in names[start:end]]
    return [leaf for prefix, _, leaf in between if prefix == owner]
