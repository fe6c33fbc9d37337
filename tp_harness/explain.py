"""What a user asks after a mismatch: which tensor went wrong first, and what mistake does it look like?"""

from __future__ import annotations

from dataclasses import replace

from .evidence import Evidence
from .localise import first_divergence
from .result import Result


def explain(evidence: Evidence, result: Result) -> Result:
    """The result with its first divergence; the ranks of the evidence ran with taps on."""
    tapped = evidence.expectation.run_tapped(evidence.dtype)
    found = first_divergence(evidence, tapped)
    if found is None:
        return result
    return replace(result, first_divergence=found[0])
