"""Known mistakes of tensor parallelism by what they do to numbers; see `signature.py` for when one is named.

To add one: a function that computes the wrong tensor, and an entry in the tuple of its file.
"""

from .attention import ATTENTION
from .blocks import BLOCKS
from .common import COMMON
from .cuts import CUTS
from .experts import EXPERTS
from .heads import HEADS
from .norm import NORM
from .outputs import OUTPUTS
from .signature import Guess, Signature, diagnose
from .site import Site, UnavailableError, as_output, is_known, site_of
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
    *CUTS,
    *HEADS,
    *COMMON,
)

__all__ = [
    "SIGNATURES",
    "Guess",
    "Signature",
    "Site",
    "UnavailableError",
    "as_output",
    "diagnose",
    "is_known",
    "site_of",
]
