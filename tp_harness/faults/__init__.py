"""The faults that the harness is tried on, by name. To add one: an entry in a file beside this one.

A fault is data: what it does to a case, where it is active, what must be seen of it. `FAULTS` holds those of built-in
components, in the order of the data; `GENERIC` two that any module can have; `GRAPH` those of the
compiled path, to which most backends are blind.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from ..case.case import Case
from ..errors import UsageError
from . import attention, embedding, experts, generic, graph, norm, runtime
from .fault import EVERY, Fault

FAULTS: tuple[Fault, ...] = (
    *embedding.FAULTS,
    *norm.FAULTS,
    *attention.FAULTS,
    *experts.FAULTS,
    *runtime.FAULTS,
)
GENERIC: tuple[Fault, ...] = generic.FAULTS
GRAPH: tuple[Fault, ...] = graph.FAULTS
BY_NAME: Mapping[str, Fault] = {fault.name: fault for fault in (*FAULTS, *GENERIC, *GRAPH)}

__all__ = ["BY_NAME", "EVERY", "FAULTS", "GENERIC", "GRAPH", "Fault", "find_fault", "injected"]


def find_fault(name: str) -> Fault:
    """The fault of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in BY_NAME:
        near = difflib.get_close_matches(name, BY_NAME, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UsageError(f"unknown fault {name!r}.{hint} `tp-harness list faults` shows all {len(BY_NAME)}.")
    return BY_NAME[name]


def injected(name: str, case: Case, place: str = "", rank: int = EVERY) -> Case:
    """The case with the fault in it; with the empty name, the case.

    `place` and `rank` say where a fault is put in that any module can have; see `generic.spoilt`.
    """
    if not name:
        return case
    fault = find_fault(name)
    return generic.spoilt(case, fault.spoil, place, rank) if fault.spoil else fault.apply(case)
