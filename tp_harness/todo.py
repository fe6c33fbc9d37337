"""What a run still has to do: its options, less what its record holds already from before it was resumed. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from .options import Resolved
from .record import RunRecord
from .result import Result, Status

EXPLAINED = (Status.MISMATCH, Status.SHAPE, Status.NONFINITE)  # what is run once more, to say where it went wrong


@dataclass(frozen=True, kw_only=True)
class Todo:
    """Targets are (component, layer), as `Resolved.targets` names them."""

    options: Resolved
    record: RunRecord

    @property
    def targets(self) -> tuple[tuple[str, int], ...]:
        """Those that lack something at some degree."""
        return tuple(t for t in self.options.targets if any(self._lacks(t, tp) for tp in self.options.degrees))

    def lacks_control(self, tp: int) -> bool:
        """Something passed at that degree, and the run was cut short before a fault was put in beside it."""
        wanted = self.options.fault_control and not self.options.fault
        passed = any(r.tp == tp and r.status is Status.PASS for r in self.record.results)
        return wanted and passed and all(control.tp != tp for control in self.record.controls)

    def target_of(self, result: Result) -> tuple[str, int]:
        """The target that a result is of; a user's case is a target called "case"."""
        return "case" if self.options.case else result.component, result.layer

    def dtypes(self, target: tuple[str, int], tp: int) -> tuple[str, ...]:
        """Those of which the target has no result at that degree."""
        held = {result.dtype for result in self._held(target, tp)}
        return tuple(dtype for dtype in self.options.dtypes if dtype not in held)

    def unexplained(self, result: Result) -> bool:
        """It differed, or may have, and nobody has looked yet where first; a program that never ran has no tensors."""
        doubtful = result.status in EXPLAINED or any(gate.undecided for gate in result.gates)
        return doubtful and result.first_divergence is None and not result.never_ran

    def _lacks(self, target: tuple[str, int], tp: int) -> bool:
        """A result, the explanation of a mismatch, or the control of its degree."""
        return (
            self.lacks_control(tp)
            or bool(self.dtypes(target, tp))
            or any(map(self.unexplained, self._held(target, tp)))
        )

    def _held(self, target: tuple[str, int], tp: int) -> list[Result]:
        return [r for r in self.record.results if r.tp == tp and self.target_of(r) == target]
