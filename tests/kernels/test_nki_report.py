"""The report says what it found and fails when something did not hold."""

from __future__ import annotations

import pytest
from tp_harness.kernels.checks import report, rule_cases


def test_violations_are_counted_and_five_messages_shown(capsys) -> None:
    assert report.print_violations()
    text = capsys.readouterr().out
    total = len(rule_cases.CASES)
    assert f"seeded violations: {total}, rejected by their rule: {total}" in text
    assert text.count("\n  rule ") == 5


def test_a_rule_that_is_not_enforced_is_reported(capsys, monkeypatch) -> None:
    case = rule_cases.CASES[0]
    harmless = rule_cases.RuleCase(rule=case.rule, what="harmless", good=case.good, bad=case.good)
    monkeypatch.setattr(rule_cases, "CASES", (case, harmless))
    assert not report.print_violations()
    assert "seeded violations: 2, rejected by their rule: 1" in capsys.readouterr().out


@pytest.mark.slow
def test_the_whole_report_holds(capsys) -> None:
    assert report.main([]) == 0
    assert "never compiled by neuronx-cc, never run on Trn1" in capsys.readouterr().out
