"""Seconds of one step on Trn1: compute, HBM and NeuronLink, added.

The terms are added, not overlapped, because the published rows fit a sum: their time per token is that of the bytes
plus a constant per reduction. Rates are those of constants.py, with their sources.
"""

from __future__ import annotations

from dataclasses import dataclass

from .collectives import Collectives
from .constants import BOUNDARY, COMPUTE_EFFICIENCY, CORE_FLOPS, HBM_CACHE, HBM_WEIGHTS, SCORE
from .work import Work


@dataclass(frozen=True, kw_only=True)
class Terms:
    """Seconds in matrix products, in memory traffic, and in collectives.

    `link_high_s` is the collectives' time if the fitted cost per reduction were the same at every degree, tp 1
    included: the published rows, all of tp 32, do not show how much of it shrinks with the degree.
    """

    compute_s: float
    hbm_s: float
    link_s: float
    link_high_s: float

    @property
    def seconds(self) -> float:
        """Seconds of all terms."""
        return self.compute_s + self.hbm_s + self.link_s

    @property
    def seconds_high(self) -> float:
        """Seconds of all terms, with `link_high_s` for the collectives."""
        return self.compute_s + self.hbm_s + self.link_high_s

    @property
    def bound(self) -> str:
        """The largest term: compute, HBM or NeuronLink."""
        named = {"compute": self.compute_s, "HBM": self.hbm_s, "NeuronLink": self.link_s}
        return max(named, key=named.__getitem__)


def terms(work: Work, collectives: Collectives) -> Terms:
    """Seconds that `work` takes on each core."""
    times = [collectives.seconds(message) for message in work.messages] or [0.0] * work.boundaries
    return Terms(
        compute_s=work.flops / (CORE_FLOPS.value * COMPUTE_EFFICIENCY.value),
        hbm_s=(work.read_bytes + work.activation_bytes) / HBM_WEIGHTS.value
        + work.cache_bytes / HBM_CACHE.value
        + work.scores * SCORE.value,
        link_s=sum(times),
        link_high_s=sum(max(time, BOUNDARY.value) for time in times),
    )
