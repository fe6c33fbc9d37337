"""What a run still has to do: its options, less what its record holds already from before it was resumed. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from ..config.options import OWN, Resolved
from .result import Control, Result, Status
from .run_record import RunRecord

EXPLAINED = (Status.MISMATCH, Status.SHAPE, Status.NONFINITE)  # what is run once more, to say where it went wrong


@dataclass(frozen=True, kw_only=True)
class Todo:
    """Targets are (component, layer), as `Resolved.targets` names them.

    `own` is the name and layer that the results of an own Case have, whose only target is OWN; None for all of a run.
    """

    options: Resolved
    record: RunRecord
    own: tuple[str, int] | None = None

    @property
    def targets(self) -> tuple[tuple[str, int], ...]:
        """Those that lack something at some degree."""
        return tuple(t for t in self.options.targets if any(self._lacks(t, tp) for tp in self.options.degrees))

    def lacks_control(self, tp: int) -> bool:
        """Something passed at that degree, and the run was cut short before a fault was put in beside it."""
        wanted = self.options.fault_control and not self.options.fault
        passed = any(r.tp == tp and r.status is Status.PASS and self.holds(r) for r in self.record.results)
        return wanted and passed and not any(c.tp == tp and self.holds(c) for c in self.record.controls)

    def holds(self, found: Result | Control) -> bool:
        """Whether it is of this Case, or of the run if that is not an own Case's."""
        return self.own in (None, (found.component, found.layer))

    def target_of(self, result: Result) -> tuple[str, int]:
        """The target that a result is of."""
        return OWN if self.own else (result.component, result.layer)

    def dtypes(self, target: tuple[str, int], tp: int) -> tuple[str, ...]:
        """Those of which the target has no result at that degree."""
        held = {result.dtype for result in self._held(target, tp)}
        return tuple(dtype for dtype in self.options.dtypes if dtype not in held)

    def unexplained(self, result: Result) -> bool:
        """It differed, or may have, and nobody has looked yet where first; a program that never ran has no tensors."""
        doubtful = result.status in EXPLAINED or any(gate.undecided for gate in result.gates)
        return self.holds(result) and doubtful and result.first_divergence is None and not result.never_ran

    def _lacks(self, target: tuple[str, int], tp: int) -> bool:
        """A result, the explanation of a mismatch, or the control of its degree."""
        return (
            self.lacks_control(tp)
            or bool(self.dtypes(target, tp))
            or any(map(self.unexplained, self._held(target, tp)))
        )

    def _held(self, target: tuple[str, int], tp: int) -> list[Result]:
        held = (r for r in self.record.results if r.tp == tp and self.holds(r))
        return [r for r in held if self.target_of(r) == target]
