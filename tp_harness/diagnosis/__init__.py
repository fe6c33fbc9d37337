"""Known mistakes of tensor parallelism by what they do to numbers; see `fit.py` for when one is named.

To add one: a function that computes the wrong tensor, and an entry in the tuple of its file. Those of a model family's
modules are in its own folder.
"""

from __future__ import annotations

from ..models import knowledge
from .common import COMMON
from .cuts import CUTS
from .fit import Diagnosis, diagnose
from .heads import HEADS
from .indices import INDICES
from .outputs import OUTPUTS
from .parts import PARTS
from .places import PLACES
from .shares import SHARES
from .signature import Guess, Signature
from .site import Site, UnavailableError, as_output, is_known, site_of
from .summands import SUMMANDS
from .sums import SUMS

OF_ANY_MODULE: tuple[Signature, ...] = (
    *SUMS,
    *OUTPUTS,
    *SUMMANDS,
    *PARTS,
    *PLACES,
    *INDICES,
    *SHARES,
    *CUTS,
    *HEADS,
    *COMMON,
)

__all__ = [
    "Diagnosis",
    "Guess",
    "Signature",
    "Site",
    "UnavailableError",
    "all_signatures",
    "as_output",
    "diagnose",
    "is_known",
    "site_of",
]


def all_signatures() -> tuple[Signature, ...]:
    """Those of the families' modules first, which speak of one place, then those that any module can have."""
    return (*(signature for known in knowledge() for signature in known.SIGNATURES), *OF_ANY_MODULE)
