"""A run's failures, grouped: results of one mistake together. Pure functions of the results; no torch.

Results belong to one mistake if the same tensor of the same component went wrong first and their causes agree, at
whatever degree and in whatever dtype; what bfloat16 saw without a cause follows float32 at its degree, which sees more.
Ranks that ended, and runs that prove nothing, belong together if they say the same or are of the same component.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..judge.verdict import nearest_gate
from ..results.result import Cause, Result, Status, exit_code
from .headline import failed_by

_ORDER = (3, 1, 4)  # exit codes, the worst first


@dataclass(frozen=True, kw_only=True)
class Failure:
    """The results of one mistake in the order of the run, at least one, and all results of the run."""

    results: tuple[Result, ...]
    run: tuple[Result, ...]

    @property
    def first(self) -> Result:
        """What the paragraph's sentences are told of: one with a cause, and the first tensor, if any has."""
        return next((r for r in self.results if r.diagnosis), self.results[0])

    @property
    def components(self) -> tuple[tuple[str, int], ...]:
        """Which components, with their layers, it shows in."""
        return tuple(dict.fromkeys((result.label, result.layer) for result in self.results))

    @property
    def causes(self) -> tuple[Cause, ...]:
        """Those that hold in every result that names any."""
        names = [{cause.name for cause in r.diagnosis} for r in self.results if r.diagnosis]
        return tuple(c for c in self.first.diagnosis if all(c.name in held for held in names))


def failures(results: Sequence[Result]) -> list[Failure]:
    """Every mistake of a run: what ended without a verdict, what is wrong, what proves nothing; each as it was run."""
    failed = [result for result in results if result.status is not Status.PASS]
    groups = _by_mistake([r for r in failed if has_numbers(r)]) + _by_reason([r for r in failed if not has_numbers(r)])
    place = {id(result): i for i, result in enumerate(results)}
    for group in groups:
        group.sort(key=lambda r: place[id(r)])
    groups.sort(key=lambda group: (_ORDER.index(exit_code([r.status for r in group])), place[id(group[0])]))
    return [Failure(results=tuple(group), run=tuple(results)) for group in groups]


def has_numbers(result: Result) -> bool:
    """A result that did not pass is told by its tensors, and not by the sentence of its ranks' end."""
    return result.first_divergence is not None or result.status in (Status.MISMATCH, Status.SHAPE)


def _by_mistake(results: Sequence[Result]) -> list[list[Result]]:
    groups: list[list[Result]] = []
    for result in sorted(results, key=lambda r: not r.diagnosis):  # those with a cause first: the others follow them
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
    """What went wrong first, by the fields that hold it."""
    found = result.first_divergence
    if found:
        return result.label, result.status.value, found.tensor
    gate = nearest_gate(tuple(gate for gate in result.gates if not gate.passed))
    return result.label, result.status.value, failed_by(result) or (gate.tensor if gate else "")


def _follows(result: Result, group: Sequence[Result]) -> bool:
    """It has no cause, and the group holds what float32 found of the same at its degree."""
    same = [r for r in group if (r.label, r.layer, r.tp, r.status) == _key(result)]
    return result.dtype != "float32" and not result.diagnosis and any(r.dtype == "float32" for r in same)


def _key(result: Result) -> tuple[str, int, int, Status]:
    return result.label, result.layer, result.tp, result.status


def _by_reason(results: Sequence[Result]) -> list[list[Result]]:
    """Those that say the same, and such groups of one component as have the same status."""
    alike: dict[object, list[Result]] = {}
    for result in results:
        alike.setdefault((result.status, result.reason), []).append(result)
    groups: dict[object, list[Result]] = {}
    for key, group in alike.items():
        labels = {result.label for result in group}
        groups.setdefault(key if len(labels) > 1 else (group[0].status, labels.pop()), []).extend(group)
    return list(groups.values())
