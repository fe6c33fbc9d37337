"""How well tests used the cores: sharing is seen, and the ideal is a lower bound."""

from __future__ import annotations

from tp_harness.pytest_plugin.pool_usage import core_seconds, ideal, shared, span
from tp_harness.pytest_plugin.results import TestResult
from tp_harness.results.result import Status


def stay(first: int, tp: int, begin: float, end: float, name: str = "") -> TestResult:
    return TestResult(
        **{"component": "c", "backend": "b", "dtype": "", "layer": 0, "draws": 1, "seed": 0, "reason": ""},
        **{"test": name or f"t{first}-{tp}-{begin}", "tp": tp, "first_core": first},
        **{"acquired_s": begin, "released_s": end, "status": Status.PASS},
    )


def test_sharing_would_be_seen() -> None:
    apart = [stay(0, 8, 0, 1), stay(8, 8, 0, 1), stay(0, 32, 1, 2), stay(0, 1, 2, 3), stay(1, 1, 2, 3)]
    assert shared(apart) == []
    assert len(shared([*apart, stay(6, 2, 0.9, 0.95)])) == 1
    assert len(shared([*apart, stay(31, 1, 1.5, 3)])) == 1
    assert shared([*apart, stay(0, 8, 0, 1, name=apart[0].test)]) == [], "two verdicts of one test"


def test_the_ideal_is_a_lower_bound() -> None:
    tests = [stay(0, 32, 0, 2), stay(0, 8, 2, 4), stay(8, 8, 2, 4), stay(0, 1, 4, 5)]
    assert (core_seconds(tests), span(tests)) == (64 + 16 + 16 + 1, 5)
    assert ideal(tests, pool=32, workers=4) == 2 + 2, "the whole pool alone, then the longest"
    assert ideal(tests, pool=32, workers=1) == 2 + 5
    assert ideal([stay(0, 24, 0, 2), stay(0, 24, 2, 5)], pool=32, workers=9) == 5, "no two fit side by side"
    assert ideal([stay(i, 1, 0, 4) for i in range(2)], pool=2, workers=9) == 4
