"""One-line mistakes in the kernels are noticed, every one."""

from __future__ import annotations

from collections import Counter

import pytest
from tp_harness.kernels.checks.mutants import CASES, MUTANTS, Mutant, judge, load, notices


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.id)
def test_mutant_is_killed(mutant: Mutant) -> None:
    verdict = judge(mutant)
    assert verdict.killed, "no case noticed"


@pytest.mark.parametrize("module", CASES)
def test_unchanged_source_is_not_noticed(module: str) -> None:
    for case in CASES[module]:
        assert notices(case, load(None, case.kernel)) is None


def test_there_are_enough_mutants_of_each_kernel() -> None:
    counts = Counter(mutant.module for mutant in MUTANTS)
    assert set(counts) == set(CASES)
    assert min(counts.values()) >= 7
    assert len(MUTANTS) >= 40
    assert len({mutant.id for mutant in MUTANTS}) == len(MUTANTS)


def test_a_mutant_must_be_one_place_in_one_line() -> None:
    with pytest.raises(ValueError, match="found 0 times"):
        _ = Mutant(module="rope", old="no such text", new="").source
