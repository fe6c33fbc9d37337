"""The faults that the harness is tried on, by name. To add one: an entry in a file of its family, or in generic.py.

A fault is data: what it does to a case, where it is active, what must be seen of it. `FAULTS` holds those of the
families' components, in the order of the data; `GENERIC` two that any module can have; `GRAPH` those of the compiled
path, which most backends cannot show; `SERVED` those of components of several calls.
"""

from __future__ import annotations

import difflib
from functools import cache
from typing import TYPE_CHECKING, Any

from ..case.case import Case
from ..errors import UsageError
from ..models import families
from . import generic
from .fault import EVERY, Fault

if TYPE_CHECKING:
    FAULTS: tuple[Fault, ...]
    GRAPH: tuple[Fault, ...]
    SERVED: tuple[Fault, ...]
    BY_NAME: dict[str, Fault]

GENERIC: tuple[Fault, ...] = generic.FAULTS

__all__ = ["BY_NAME", "EVERY", "FAULTS", "GENERIC", "GRAPH", "SERVED", "Fault", "find_fault", "injected"]


@cache
def _registry() -> dict[str, Any]:
    """Made at the first use, because the families' faults import this package."""
    faults: tuple[Fault, ...] = tuple(fault for family in families() for fault in family.faults())
    graph: tuple[Fault, ...] = tuple(fault for family in families() for fault in family.graph_faults())
    served: tuple[Fault, ...] = tuple(fault for family in families() for fault in family.served_faults())
    by_name = {fault.name: fault for fault in (*faults, *GENERIC, *graph, *served)}
    return {"FAULTS": faults, "GRAPH": graph, "SERVED": served, "BY_NAME": by_name}


def __getattr__(name: str) -> Any:
    if name not in ("FAULTS", "GRAPH", "SERVED", "BY_NAME"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _registry()[name]


def find_fault(name: str) -> Fault:
    """The fault of that name.

    Raises:
        UsageError: there is none.
    """
    found: dict[str, Fault] = _registry()["BY_NAME"]
    if name not in found:
        near = difflib.get_close_matches(name, found, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UsageError(f"unknown fault {name!r}.{hint} `tp-harness list faults` shows all {len(found)}.")
    return found[name]


def injected(name: str, case: Case, place: str = "", rank: int = EVERY) -> Case:
    """The case with the fault in it; the case itself if the name is "".

    `place` and `rank` say where to put a fault that any module can have; see `generic.spoilt`.

    Raises:
        UsageError: there is no fault of that name.
    """
    if not name:
        return case
    fault = find_fault(name)
    return generic.spoilt(case, fault.spoil, place, rank) if fault.spoil else fault.apply(case)
