"""One result for several draws of weights and inputs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain

from ..results.result import Result, Status
from .verdict import nearest_gate, severity


def by_dtype(drawn: Iterable[list[Result]]) -> list[list[Result]]:
    """The results of several draws for each dtype, in the order of the first draw's."""
    found: dict[str, list[Result]] = {}
    for result in chain.from_iterable(drawn):
        found.setdefault(result.dtype, []).append(result)
    return list(found.values())


def worst_draw(results: Sequence[Result]) -> Result:
    """The verdict over several draws is the worst one; of equal ones, that nearest to a limit, or to a tie.

    Its proof says which branches were taken in any draw.
    """

    def badness(result: Result) -> tuple[int, bool, float, float]:
        gate, tie = nearest_gate(result.gates), result.proof.margin if result.proof else math.inf
        return result.status.badness, result.status is Status.DIFFERENT, severity(gate) if gate else 0.0, -tie

    worst = max(results, key=badness)
    said = dict.fromkeys(sentence for each in results if each.proof for sentence in each.proof.coverage)
    return replace(worst, proof=replace(worst.proof, coverage=tuple(said))) if worst.proof else worst
