"""The lint finds what compilers reject, and nothing in the kernels."""

from __future__ import annotations

import pytest
from tp_harness.kernels import lint

# rule -> (what breaks it, what to write instead), as the body of a function.
BODIES = {
    "lambda": ("f = lambda x: x", "f = g"),
    "inner-function": ("def f(x):\n        return x", "f = g"),
    "comprehension": ("f = [x for x in y]", "for x in y:\n        g(x)"),
    "identity": ("if x is None:\n        f = 1", "if x == 0:\n        f = 1"),
    "variadic": ("f = g(*x)", "f = g(x[0], x[1])"),
    "unpack-subscript": ("x[0], y = g()", "a, y = g()"),
    "statement": ("while x:\n        g()", "for i in range(3):\n        g()"),
    "infinity": ('f = float("-inf")', "f = -1.0e30"),
    "deprecated-loop": ("for i in nl.affine_range(3):\n        g()", "for i in range(3):\n        g()"),
    "functional-layer": ("f = nl.softmax(x, axis=1)", "f = nl.ndarray((1, 1), dtype=nl.float32)"),
    "instruction": ("nisa.bn_stats(dst=x, data=x)", "nisa.reciprocal(dst=x, data=x)"),
    "positional": ("nisa.reciprocal(x, x)", "nisa.reciprocal(dst=x, data=x)"),
    "accumulate": (
        "nisa.nc_matmul(dst=x, stationary=x, moving=x)",
        "nisa.nc_matmul(dst=x, stationary=x, moving=x, accumulate=False)",
    ),
}
SOURCES = {
    "keyword-marker": ("def f(x, *, y):\n    return x\n", "def f(x, y):\n    return x\n"),
    "list-argument": ("def f(x: list[int]):\n    return x\n", "def f(x: tuple[int, int]):\n    return x\n"),
    "old-package": ("import neuronxcc.nki as nki\n", "from tp_harness.kernels.compat import nki\n"),
    "decorator": (
        "@nki.jit(mode='simulation')\ndef f(x):\n    return x\n",
        "@nki.jit\ndef f(x):\n    return x\n",
    ),
}
ALL = {
    **{rule: tuple(f"def k(x, y):\n    {body}\n" for body in pair) for rule, pair in BODIES.items()},
    **SOURCES,
}
MORE_BAD = {
    "statement": (
        "try:\n        g()\n    except ValueError:\n        g()",
        "with g():\n        g()",
        "del x",
    ),
    "comprehension": ("f = {x: y for x in y}", "f = sum(x for x in y)", "f = {x for x in y}"),
    "infinity": ("f = np.inf",),
    "identity": ("f = x is not y",),
}


@pytest.mark.parametrize("rule", ALL)
def test_rule(rule: str) -> None:
    bad, good = ALL[rule]
    assert rule in {finding.rule for finding in lint.check_source(bad, "kernel.py")}
    assert lint.check_source(good, "kernel.py") == []


@pytest.mark.parametrize(("rule", "body"), [(rule, body) for rule, bodies in MORE_BAD.items() for body in bodies])
def test_more_that_is_rejected(rule: str, body: str) -> None:
    found = lint.check_source(f"def k(x, y):\n    {body}\n", "kernel.py")
    assert rule in {finding.rule for finding in found}


def test_variadic_parameters_and_mutable_defaults() -> None:
    found = lint.check_source("def k(x=[], **more):\n    return x\n", "kernel.py")
    assert {finding.rule for finding in found} == {"list-argument", "variadic"}


def test_every_rule_is_tested() -> None:
    assert set(ALL) == set(lint.RULES)


def test_message_has_place_rule_and_advice() -> None:
    (finding,) = lint.check_source("def k(x):\n    y = lambda: x\n", "kernels/mine.py")
    assert str(finding) == "kernels/mine.py:2: lambda: Lambda; write a function at module level"


def test_kernels_are_clean() -> None:
    findings = lint.check_kernels()
    assert findings == [], "\n".join(map(str, findings))
