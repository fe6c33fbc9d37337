"""A run's failures, grouped: results of one mistake together. Pure functions of the results; no torch.

Results belong to one mistake if the same tensor of the same component went wrong first and their causes agree, at
any degree and in any dtype; a result without a cause joins those of its degree in a dtype of more digits, which are
more exact. Crashes, and runs that prove nothing, belong together if they have the same reason or the same component.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..config.dtypes import DTYPES
from ..judge.verdict import nearest_gate
from ..results.result import Cause, Mistake, Result, Status, exit_code
from .headline import failed_by

_ORDER = (3, 1, 4)  # exit codes, the worst first


@dataclass(frozen=True, kw_only=True)
class Failure:
    """The results of one mistake in the order of the run, at least one, and all results of the run."""

    results: tuple[Result, ...]
    run: tuple[Result, ...]

    @property
    def first(self) -> Result:
        """The result that the paragraph describes: the first with a certain cause, or with any, or of all."""
        ranked = [r for r in self.results if _certain(r)] or [r for r in self.results if r.diagnosis]
        return next(iter(ranked or self.results))

    @property
    def components(self) -> tuple[tuple[str, int], ...]:
        """The components and layers of its results."""
        return tuple(dict.fromkeys((result.label, result.layer) for result in self.results))

    @property
    def causes(self) -> tuple[Cause, ...]:
        """The causes that every result with a cause names; where one is certain, every result with a certain one."""
        told = [r for r in self.results if _certain(r)] or [r for r in self.results if r.diagnosis]
        names = [{cause.name for cause in r.diagnosis} for r in told]
        return tuple(c for c in self.first.diagnosis if all(c.name in held for held in names))

    @property
    def further(self) -> dict[str, Mistake]:
        """The mistakes beside the first by tensor, in order; each as in a result that knows its cause, if one does."""
        found: dict[str, Mistake] = {}
        for mistake in (m for result in (self.first, *self.results) for m in result.further):
            known = found.get(mistake.divergence.tensor)
            if known is None or (mistake.causes and not known.causes):
                found[mistake.divergence.tensor] = mistake
        return found


def failures(results: Sequence[Result]) -> list[Failure]:
    """Every mistake of a run: first crashes, then what is wrong, then what proves nothing; each in the run's order."""
    failed = [result for result in results if not result.status.passed]
    groups = _by_mistake([r for r in failed if has_numbers(r)]) + _by_reason([r for r in failed if not has_numbers(r)])
    place = {id(result): i for i, result in enumerate(results)}
    for group in groups:
        group.sort(key=lambda r: place[id(r)])
    groups.sort(key=lambda group: (_ORDER.index(exit_code([r.status for r in group])), place[id(group[0])]))
    return [Failure(results=tuple(group), run=tuple(results)) for group in groups]


def title_of(found: Sequence[Failure]) -> str:
    """The title of the part that holds these failures."""
    return "What is wrong" if any(failure.first.status.failed for failure in found) else "What is not decided"


def has_numbers(result: Result) -> bool:
    """Whether a result that did not pass is described by its tensors, and not by its reason."""
    return result.first_divergence is not None or result.status in (Status.MISMATCH, Status.DIFFERENT, Status.SHAPE)


def _by_mistake(results: Sequence[Result]) -> list[list[Result]]:
    groups: list[list[Result]] = []
    for result in sorted(results, key=lambda r: not r.diagnosis):  # those with a cause first: the others join them
        fits = [group for group in groups if _agree(group, result)]
        if len(fits) == 1 or (fits and result.diagnosis):
            fits[0].append(result)
        else:
            groups.append([result])
    for group in groups[:]:
        leads = [other for other in groups if other is not group and all(_follows(r, other) for r in group)]
        if len(leads) == 1:
            leads[0].extend(group)
            groups.remove(group)
    return groups


def _agree(group: Sequence[Result], result: Result) -> bool:
    if _site(group[0]) != _site(result):
        return False
    held = [{cause.name for cause in r.diagnosis} for r in (*group, result) if r.diagnosis]
    return not held or bool(set.intersection(*held))


def _site(result: Result) -> tuple[str, ...]:
    """Component, kind, and the tensor or check that went wrong first."""
    found = result.first_divergence
    if found:
        return result.label, _kind(result), found.tensor
    gate = nearest_gate(tuple(gate for gate in result.gates if not gate.passed))
    return result.label, _kind(result), failed_by(result) or (gate.tensor if gate else "")


def _follows(result: Result, group: Sequence[Result]) -> bool:
    """Whether the group has a result of the same target and degree in a dtype of more digits, and this one no cause.

    Its cause does not count where that result has a certain one for the same tensor.
    """
    more = DTYPES[: DTYPES.index(result.dtype)] if result.dtype in DTYPES else ()
    leads = [r for r in group if r.dtype in more and _key(r) == _key(result)]
    return any(not result.diagnosis or (_certain(r) and _site(r) == _site(result)) for r in leads)


def _certain(result: Result) -> bool:
    """Whether it has a cause that gives the very residues."""
    return any(cause.exact for cause in result.diagnosis)


def _key(result: Result) -> tuple[str, int, int, str]:
    return result.label, result.layer, result.tp, _kind(result)


def _kind(result: Result) -> str:
    """Its status; DIFFERENT in exact arithmetic is what a MISMATCH is in floating point."""
    return (Status.MISMATCH if result.status is Status.DIFFERENT else result.status).value


def _by_reason(results: Sequence[Result]) -> list[list[Result]]:
    """Results with the same status and reason; such groups of one component and status are joined."""
    alike: dict[object, list[Result]] = {}
    for result in results:
        alike.setdefault((result.status, result.reason), []).append(result)
    groups: dict[object, list[Result]] = {}
    for key, group in alike.items():
        labels = {result.label for result in group}
        groups.setdefault(key if len(labels) > 1 else (group[0].status, labels.pop()), []).extend(group)
    return list(groups.values())
