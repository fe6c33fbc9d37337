"""What a resumed run still has to do: its options, without what its record holds already. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from ..config.options import OWN, Resolved
from .result import Control, Result, Status
from .run_record import RunRecord

# These are run once more, to find the first wrong tensor.
EXPLAINED = (Status.MISMATCH, Status.DIFFERENT, Status.SHAPE, Status.NONFINITE)


@dataclass(frozen=True, kw_only=True)
class Todo:
    """The remaining work of a run. Targets are (component, layer), as in `Resolved.targets`.

    For one own Case, whose only target is OWN, `own` is the name and layer that its results have; None for a whole run.
    """

    options: Resolved
    record: RunRecord
    own: tuple[str, int] | None = None

    @property
    def targets(self) -> tuple[tuple[str, int], ...]:
        """The targets that lack a result, an explanation or a control at some degree."""
        return tuple(t for t in self.options.targets if any(self._lacks(t, tp) for tp in self.options.degrees))

    def lacks_control(self, tp: int) -> bool:
        """True when a result passed at degree `tp` (ranks), and its control is wanted and not there yet."""
        wanted = self.options.fault_control and not self.options.fault
        passed = any(r.tp == tp and r.status.passed and self.holds(r) for r in self.record.results)
        return wanted and passed and not any(c.tp == tp and self.holds(c) for c in self.record.controls)

    def holds(self, found: Result | Control) -> bool:
        """Whether a result or control belongs to this Case; always true for a whole run."""
        return self.own in (None, (found.component, found.layer))

    def target_of(self, result: Result) -> tuple[str, int]:
        """The target that a result belongs to."""
        return OWN if self.own else (result.component, result.layer)

    def dtypes(self, target: tuple[str, int], tp: int) -> tuple[str, ...]:
        """The dtypes in which the target has no result at degree `tp` (ranks) yet."""
        held = {result.dtype for result in self._held(target, tp)}
        return tuple(dtype for dtype in self.options.dtypes if dtype not in held)

    def unexplained(self, result: Result) -> bool:
        """True when a failed or undecided result has no first divergence yet, although its program ran."""
        doubtful = result.status in EXPLAINED or any(gate.undecided for gate in result.gates) or _unequal(result)
        return self.holds(result) and doubtful and result.first_divergence is None and not result.never_ran

    def _lacks(self, target: tuple[str, int], tp: int) -> bool:
        """Whether a result, the explanation of a mismatch, or the control of the degree is missing."""
        return (
            self.lacks_control(tp)
            or bool(self.dtypes(target, tp))
            or any(map(self.unexplained, self._held(target, tp)))
        )

    def _held(self, target: tuple[str, int], tp: int) -> list[Result]:
        held = (r for r in self.record.results if r.tp == tp and self.holds(r))
        return [r for r in held if self.target_of(r) == target]


def _unequal(result: Result) -> bool:
    """Whether residues are not equal, and it is not said where they were so first."""
    proof = result.proof
    return result.status is Status.NOT_PROVED and proof is not None and bool(proof.unequal) and not proof.first
