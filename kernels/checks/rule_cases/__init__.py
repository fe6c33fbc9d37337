"""For every rule of the interpreter a piece of kernel that keeps it and one that breaks it."""

from __future__ import annotations

from tp_harness.kernels.checks.rule_cases import memory, operands, other_engines, tensor_engine, vector_engine
from tp_harness.kernels.checks.rule_cases.case import RuleCase, outcome

CASES: tuple[RuleCase, ...] = (
    *memory.CASES,
    *operands.CASES,
    *tensor_engine.CASES,
    *vector_engine.CASES,
    *other_engines.CASES,
)

__all__ = ["CASES", "RuleCase", "outcome"]
