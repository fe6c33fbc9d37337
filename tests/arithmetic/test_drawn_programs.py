"""A few of the programs that `tests/support/fuzz_exact.py` tries by the thousand, and a proof that holes are seen."""

from __future__ import annotations

import fuzz_exact
import pytest
import torch
from exact_programs import STEPS, Program, exactly, material, plainly
from exact_runs import FIELD, proved
from exact_step import Step
from torch.utils._python_dispatch import TorchDispatchMode

from tp_harness.arithmetic.operations import RULES, looked_up
from tp_harness.arithmetic.residues.field import Field


class Operations(TorchDispatchMode):
    """Notes the operations that a program calls."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.names.add(str(func.overloadpacket))
        return func(*args, **(kwargs or {}))


def alone(step: Step, function) -> Program:  # type: ignore[no-untyped-def]
    return Program(((step, 0, 1),), (function,), 0)


def test_true_forms_are_proved_and_mistakes_are_not() -> None:
    tally = fuzz_exact.fuzz(150)
    assert not tally.failures
    assert tally.ends["proved"] > 200
    assert tally.ends["mistake not proved"] > 150
    assert not tally.ends["mistake proved"]


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_each_step_alone(step: Step) -> None:
    """Every form, on one rank and on two, against torch's float64; every mistake."""
    given = [3 * x for x in material(7)]
    right = exactly(alone(step, step.forms[0]), given, FIELD)[0]
    plain = plainly(alone(step, step.forms[0]), given)[0]
    assert right.numbers is not None and not right.seen.escapes
    assert fuzz_exact.apart(right.numbers[0], plain) < fuzz_exact.SAME
    for form in step.forms:
        for ranks in (1, 2):
            assert all(proved(right, run) for run in exactly(alone(step, form), given, FIELD, ranks)), ranks
    for mistake in step.mistakes:
        assert not any(proved(right, run) for run in exactly(alone(step, mistake), given, FIELD, 2))
        assert any(fuzz_exact.apart(out, plain) > fuzz_exact.OTHER for out in plainly(alone(step, mistake), given, 2))
    for form in step.unproved:
        run = exactly(alone(step, form), given, FIELD)[0]
        assert run.numbers is not None and not proved(right, run)
        assert fuzz_exact.apart(run.numbers[0], plain) < fuzz_exact.SAME


def test_the_steps_have_more_than_sixty_operations() -> None:
    seen = Operations()
    for step in STEPS:
        for function in (*step.forms, *step.mistakes):
            with seen:
                plainly(alone(step, function), material(1))
    assert len({name for name in seen.names if name.startswith("aten.")}) > 100


def test_one_wrong_element_is_accepted_as_often_as_a_small_prime_lets_it() -> None:
    """Modulo p of 8 bits one in p to a few in p: with real primes none would be seen."""
    tally = fuzz_exact.fuzz(400, bits=8, pairs=1)
    p = min(Field.drawn(number, 1, 8).primes[0] for number in range(fuzz_exact.FIELDS))
    assert tally.elements > 300
    assert tally.accepted / tally.elements < 10 / p


def test_a_rule_that_loses_its_operand_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """With residues that forget what they were computed from, mistakes look proved."""
    forget = RULES[torch.ops.aten.mul]

    def forgetful(mode, func, *args, **kwargs):  # type: ignore[no-untyped-def]
        out = forget(mode, func, *args, **kwargs)
        mode.memory.read(out)[1:] = 1.0
        return out

    monkeypatch.setitem(RULES, torch.ops.aten.mul, forgetful)
    looked_up.cache_clear()
    try:
        tally = fuzz_exact.fuzz(60)
    finally:
        monkeypatch.undo()
        looked_up.cache_clear()
    assert tally.ends["mistake proved"] > 0 and tally.failures
