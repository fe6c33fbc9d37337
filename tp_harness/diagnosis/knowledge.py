"""What diagnosis may ask of a family about the modules of its reference."""

from __future__ import annotations

from typing import Protocol

from torch import nn

from .carry import Step
from .signature import Signature
from .site import Site


class Knowledge(Protocol):
    """Signatures of known mistakes, and what the names of taps mean in the family's reference."""

    @property
    def SIGNATURES(self) -> tuple[Signature, ...]:  # noqa: N802  (a module's constant)
        """The known mistakes in the family's modules."""

    def maker(self, reference: nn.Module, name: str, /) -> tuple[str, str] | None:
        """The submodule and leaf whose value a tensor ("output.0", or a tap) is; None: another's module."""

    def steps(self, site: Site, /) -> dict[str, Step]:
        """How the value of each leaf of the site's module follows from that of another."""
