"""All faults at several degrees, on all cores: each unit of work is one component at one degree in a process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from ..config.dtypes import DTYPES
from ..config.options import Resolved
from ..faults import Fault, find_fault
from ..results.mutation_score import Trial
from ..system.process_pool import in_processes
from .bench import open_bench
from .mutant import try_faults

Progress = Callable[[str], None]
# What a fault of the component costs against one of attention; orders units, so that the last one is short.
_COST = {"transformer": 6.0, "transformer_block": 2.0, "embedding": 0.3, "rmsnorm": 0.2, "rope": 0.5}
_PIECE = 20  # faults in a unit at most


@dataclass(frozen=True, kw_only=True)
class Unit:
    """Some faults of one component at one degree, by name: all that a process is sent."""

    tp: int
    faults: tuple[str, ...]
    options: Resolved

    @property
    def cost(self) -> float:
        """Cost relative to that of one fault of attention."""
        return self.tp * sum(_COST.get(find_fault(name).component, 1.0) for name in self.faults)


def try_all(faults: Sequence[Fault], options: Resolved, progress: Progress = lambda _text: None) -> list[Trial]:
    """Every fault at every degree and dtype of the options; in the order of the faults, then degrees, then dtypes."""
    work = sorted(units(faults, options), key=lambda unit: -unit.cost)
    trials: list[Trial] = []
    for done, found in enumerate(in_processes(run_unit, work), 1):
        trials += found
        progress(f"{len(trials)} trials, {done} of {len(work)} parts")
    names = [fault.name for fault in faults]
    return sorted(trials, key=lambda t: (names.index(t.fault), DTYPES.index(t.dtype), t.tp))


def run_unit(unit: Unit) -> list[Trial]:
    """The trials of one unit, in this process."""
    with open_bench(unit.options) as bench:
        return try_faults(bench, [find_fault(name) for name in unit.faults], unit.tp)


def units(faults: Sequence[Fault], options: Resolved) -> Iterator[Unit]:
    """The work of all faults at all degrees, in pieces of some faults of one component."""
    for tp in options.degrees:
        for component in dict.fromkeys(fault.component for fault in faults):
            own = [fault for fault in faults if fault.component == component]
            for piece in (own[i : i + _PIECE] for i in range(0, len(own), _PIECE)):
                targets = tuple(dict.fromkeys((fault.component, fault.layer) for fault in piece))
                chosen = replace(options, targets=targets, degrees=(tp,), draws=1)
                yield Unit(tp=tp, faults=tuple(fault.name for fault in piece), options=chosen)
