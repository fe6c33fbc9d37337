"""Known mistakes of tensor parallelism by what they do to numbers; see `signature.py` for when one is named.

To add one: a function that computes the wrong tensor, and an entry in the tuple of its file.
"""

from .attention import ATTENTION
from .blocks import BLOCKS
from .common import COMMON
from .cuts import CUTS
from .experts import EXPERTS
from .heads import HEADS
from .indices import INDICES
from .norm import NORM
from .outputs import OUTPUTS
from .parts import PARTS
from .places import PLACES
from .shares import SHARES
from .signature import Diagnosis, Guess, Signature, diagnose
from .site import Site, UnavailableError, as_output, is_known, site_of
from .summands import SUMMANDS
from .sums import SUMS
from .vocabulary import VOCABULARY

SIGNATURES: tuple[Signature, ...] = (
    *NORM,
    *ATTENTION,
    *EXPERTS,
    *BLOCKS,
    *SUMS,
    *VOCABULARY,
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
    "SIGNATURES",
    "Diagnosis",
    "Guess",
    "Signature",
    "Site",
    "UnavailableError",
    "as_output",
    "diagnose",
    "is_known",
    "site_of",
]
