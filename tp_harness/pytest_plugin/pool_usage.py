"""How the tests of a run used the pool: who shared a core (nobody may), and the least time it could have taken."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from .results import TestResult


def occupations(results: Sequence[TestResult]) -> list[TestResult]:
    """One result per test that held cores and gave them back: several verdicts of one test count once."""
    return list({(r.test, r.tp, r.acquired_s): r for r in results if r.cores and r.released_s >= r.acquired_s}.values())


def shared(results: Sequence[TestResult]) -> list[tuple[TestResult, TestResult]]:
    """Pairs of tests that held a core at the same time."""

    def overlap(a: TestResult, b: TestResult) -> bool:
        cores = a.first_core < b.first_core + b.tp and b.first_core < a.first_core + a.tp
        return cores and a.acquired_s < b.released_s and b.acquired_s < a.released_s

    return [(a, b) for a, b in combinations(occupations(results), 2) if overlap(a, b)]


def core_seconds(results: Sequence[TestResult]) -> float:
    """Seconds times cores that the tests held."""
    return sum(r.tp * held(r) for r in occupations(results))


def held(result: TestResult) -> float:
    """Seconds for which the test had its cores."""
    return result.released_s - result.acquired_s


def span(results: Sequence[TestResult]) -> float:
    """Seconds from the first block taken to the last one given back."""
    tests = occupations(results)
    return max(r.released_s for r in tests) - min(r.acquired_s for r in tests) if tests else 0.0


def ideal(results: Sequence[TestResult], *, pool: int, workers: int) -> float:
    """A lower bound on `span`: no order of these tests, held as long as they were, could take less.

    Tests of the whole pool run alone, one after the other. The rest need at least their core-seconds over the pool,
    their seconds over the workers, the longest of them, and the chain of those larger than half the pool, of which
    no two fit side by side.
    """
    tests = occupations(results)
    whole = [r for r in tests if r.tp == pool]
    rest = [r for r in tests if r.tp < pool]
    bounds = (
        core_seconds(rest) / pool,
        sum(map(held, rest)) / max(workers, 1),
        max(map(held, rest), default=0.0),
        sum(held(r) for r in rest if 2 * r.tp > pool),
    )
    return sum(map(held, whole)) + max(bounds)
