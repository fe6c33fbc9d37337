"""Every rule has a case that keeps it and one that breaks it; errors say what, where and why."""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import pytest
from tp_harness.kernels.checks.rule_cases import CASES, RuleCase, outcome
from tp_harness.kernels.nki_interpreter import RULES, NkiValidationError, isa, simulate
from tp_harness.kernels.nki_interpreter import isa as nisa
from tp_harness.kernels.nki_interpreter import language as nl


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_rule(case: RuleCase) -> None:
    assert outcome(case.good, case.good_target or case.target) is None
    error = outcome(case.bad, case.target)
    assert error is not None, "the violation was accepted"
    assert error.rule == case.rule
    assert error.target == case.target
    assert error.operand and error.detail and error.instruction


def test_every_rule_has_a_case() -> None:
    assert {case.rule for case in CASES} == set(RULES), "add a case to checks/rule_cases for each rule"


def test_every_instruction_is_refused_by_some_case() -> None:
    refused = {error.instruction for case in CASES if (error := outcome(case.bad, case.target))}
    assert {f"nisa.{name}" for name in isa.SIGNATURES} <= refused


def test_case_names_are_distinct() -> None:
    names = [case.id for case in CASES]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", isa.SIGNATURES)
def test_parameters_are_the_documented_ones(name: str) -> None:
    assert tuple(inspect.signature(getattr(isa, name)).parameters) == isa.SIGNATURES[name]


def test_unknown_parameter_is_refused() -> None:
    def kernel(x):
        nisa.reciprocal(dst=x, data=x, mask=None)

    with pytest.raises(TypeError, match="mask"):
        simulate(kernel)(np.ones((1, 1), np.float32))


def _too_wide(x):
    moving = nl.ndarray((128, 513), dtype=nl.float32, buffer=nl.sbuf)
    nisa.memset(dst=moving, value=0.0)
    out = nl.ndarray((128, 513), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_matmul(
        dst=out,
        stationary=moving[:, 0:128],
        moving=moving,
        accumulate=False,
    )


def test_message_names_instruction_operand_rule_and_source_line() -> None:
    with pytest.raises(NkiValidationError) as caught:
        simulate(_too_wide)(np.ones((1, 1), np.float32))
    error = caught.value
    lines, first = inspect.getsourcelines(_too_wide)
    line = first + next(i for i, text in enumerate(lines) if "nc_matmul" in text)
    assert str(error) == (
        "nisa.nc_matmul: operand 'moving': 513 free elements\n"
        "  rule matmul-moving (gen2): the moving tile has at most 512 free elements\n"
        f"  at {Path(__file__)}:{line} in _too_wide: nisa.nc_matmul( dst=out, stationary=moving[:, 0:128], "
        "moving=moving, accumulate=False, )"
    )
    assert (error.rule, error.instruction, error.operand) == ("matmul-moving", "nisa.nc_matmul", "moving")
    assert error.location.line == line


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("start-partition", "33 partitions start at partition 32, legal: 0, 64"),
        ("accumulate-nonmatmul", "dst was set by another instruction"),
        ("bias-tile", "is 1.0; memset a (P, 1) tile"),
        ("psum-capacity", "tile (1, 1) of nl.float32: 9 banks live, 8 exist"),
        ("activation-range", "values -1 to -1, valid for nl.rsqrt: 6.46235e-27 to 1.58456e+29"),
    ],
)
def test_message_texts(rule: str, expected: str) -> None:
    details = [error.detail for case in CASES if case.rule == rule and (error := outcome(case.bad, case.target))]
    assert expected in details


def test_uncovered_names_say_so() -> None:
    def kernel(x):
        nisa.bn_stats(dst=x, data=x)

    with pytest.raises(NotImplementedError, match=r"nisa\.bn_stats is documented but not covered"):
        simulate(kernel)(np.ones((1, 1), np.float32))
    with pytest.raises(AttributeError, match="documents no 'nc_matmull'"):
        _ = isa.nc_matmull
    with pytest.raises(NotImplementedError, match=r"nl\.softmax is documented"):
        _ = nl.softmax
    with pytest.raises(AttributeError, match="documents no 'sofmax'"):
        _ = nl.sofmax
    with pytest.raises(NotImplementedError, match=r"nl\.add\(\.\.\.\) is not covered"):
        nl.add(1, 2)
    with pytest.raises(ValueError, match="unknown target 'gen9'"):
        simulate(kernel, target="gen9")


def test_all_52_documented_functions_are_accounted_for() -> None:
    assert len(isa.SIGNATURES) == 15
    assert not set(isa.SIGNATURES) & set(isa.NOT_COVERED)
    assert len(isa.SIGNATURES) + len(isa.NOT_COVERED) + len([isa.get_nc_version]) == 52
