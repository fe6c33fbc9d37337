"""Report what does not divide, before any rank starts, with the degrees that would do.

No torch: arithmetic on the config's numbers alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ..errors import UsageError

TRN1_DEGREES = (1, 2, 8, 32)
MXFP4_BLOCK = 32  # values that share a scale, and cannot be cut apart


@dataclass(frozen=True, kw_only=True)
class Requirement:
    """What a degree must satisfy for `needed_by`, names of components.

    `what` gives the words for the message; `fits`: (config, tp) -> whether tp ranks divide it.
    """

    what: Callable[[Any], str]
    fits: Callable[[Any, int], bool]
    needed_by: tuple[str, ...]


def check_degrees(
    config: Any, requirements: Iterable[Requirement], components: tuple[str, ...], degrees: tuple[int, ...]
) -> None:
    """Refuse degrees over which something that a chosen component shards does not divide.

    Raises:
        UsageError: names every number that does not divide, and which of the Trn1 degrees would.
    """
    needed = [r for r in requirements if set(r.needed_by) & set(components)]
    for tp in degrees:
        broken = [r.what(config) for r in needed if not r.fits(config, tp)]
        if broken:
            would = [d for d in TRN1_DEGREES if all(r.fits(config, d) for r in needed)]
            raise UsageError(
                f"tp_degree {tp} does not divide {' and '.join(broken)}. "
                f"Of the Trn1 degrees, {listed(would)} would; choose with --tp."
            )


def listed(degrees: Iterable[int]) -> str:
    """The degrees as text, "1, 2"; "none" without any."""
    return ", ".join(map(str, degrees)) or "none"
