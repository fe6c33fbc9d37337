"""One-line mistakes in the kernels, and whether the checks notice each of them.

A mutant is killed if a case is refused by the interpreter, raises, or is further from the oracle than a
kernel may be.
"""

from __future__ import annotations

import importlib
import linecache
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from tp_harness.kernels import registry
from tp_harness.kernels.call import bind, to_numpy, to_torch
from tp_harness.kernels.checks.accuracy import (
    FLOAT32_LIMIT,
    AccuracyCase,
    execute,
    oracle,
    relative_error,
    shifted_gates,
)
from tp_harness.kernels.checks.mutant_table import TABLE

_FOLDER = Path(__file__).parent.parent


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """A kernel file with one line changed."""

    module: str
    old: str
    new: str

    @property
    def id(self) -> str:
        """Return the name a test report shows."""
        return f"{self.module}: {self.old.strip()} -> {self.new.strip() or '(nothing)'}"

    @property
    def source(self) -> str:
        """Return the changed source.

        Raises:
            ValueError: the piece to change is not in exactly one place, or spans lines.
        """
        original = (_FOLDER / f"{self.module}.py").read_text()
        if original.count(self.old) != 1 or "\n" in self.old + self.new:
            raise ValueError(f"{self.id}: found {original.count(self.old)} times, must be one place in one line")
        return original.replace(self.old, self.new)


MUTANTS: tuple[Mutant, ...] = tuple(Mutant(module=module, old=old, new=new) for module, old, new in TABLE)


def _case(kernel: str, use: str, tp: int, tokens: int, boost: float = 1.0, **changes: Any) -> AccuracyCase:
    changed = tuple(changes.items())
    return AccuracyCase(kernel=kernel, use=use, model="tiny", tp=tp, tokens=tokens, changes=changed, boost=boost)


# Small, and with tails in every dimension: 129 tokens, an intermediate slice of 5 or 160, a window of 16.
CASES: dict[str, tuple[AccuracyCase, ...]] = {
    "rmsnorm": (_case("rmsnorm", "norm", 1, 129), _case("rmsnorm", "norm", 1, 3, H=600)),
    "rope": (_case("rope", "queries", 8, 129),),
    "attention": (
        _case("attention", "sdpa", 8, 150, B=2, G=2),
        _case("attention", "sdpa", 32, 300),
        _case("attention", "sdpa", 32, 300, window=130),
        _case("attention", "sdpa", 32, 600, window=0),
        _case("attention", "sdpa", 32, 33, boost=40.0),
    ),
    "router": (
        _case("router", "gate", 1, 129),
        _case("router", "gate", 1, 5, E=40, H=200),
        _case("router", "gate", 1, 5, boost=40.0),
    ),
    "expert_mlp": (
        _case("expert_mlp", "experts", 1, 129),
        _case("expert_mlp", "experts", 8, 260, H=300, E=2),
        shifted_gates(torch.float32),
    ),
    "linear": (
        _case("linear", "qkv", 8, 129, K=200, N=300),
        _case("linear", "qkv", 8, 259),
        _case("linear_no_bias", "out", 1, 5),
    ),
}
CASES["tiling"] = (*CASES["rmsnorm"], *CASES["linear"], *CASES["router"], *CASES["expert_mlp"])


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """`notice`: the exception or the relative error by which the first case noticed the mutant; None if none did."""

    mutant: Mutant
    notice: Exception | float | None

    @property
    def killed(self) -> bool:
        """Return whether a case noticed it."""
        return self.notice is not None


def judge(mutant: Mutant) -> Verdict:
    """Run the cases on the mutant until one of them notices."""
    for case in CASES[mutant.module]:
        notice = notices(case, load(mutant, case.kernel))
        if notice is not None:
            return Verdict(mutant=mutant, notice=notice)
    return Verdict(mutant=mutant, notice=None)


def notices(case: AccuracyCase, kernel: Any) -> Exception | float | None:
    """Return the exception that stops `kernel` on this case, or its relative error where that is over FLOAT32_LIMIT.

    None where the case does not notice that `kernel` is another one; the error is `accuracy.relative_error`'s.
    """
    arguments = bind(registry.spec(case.kernel), **case.arguments())
    arrays = {key: to_numpy(v) if isinstance(v, torch.Tensor) else v for key, v in arguments.items()}
    try:
        arrays_out, _ = execute(kernel, arrays)
    except Exception as error:  # whatever stops a kernel has noticed the mistake
        return error
    outputs = tuple(map(to_torch, arrays_out))
    expected = oracle(registry.spec(case.kernel), arguments, outputs)
    worst = max(relative_error(a, e)[0] for a, e in zip(outputs, expected, strict=True))
    return None if worst <= FLOAT32_LIMIT else worst


def load(mutant: Mutant | None, kernel: str) -> Any:
    """Return the function of a kernel, from the changed source (of its own file, or of tiling)."""
    module = registry.spec(kernel).kernel.__module__.rsplit(".", 1)[1]
    if mutant is None:
        return _execute(module, (_FOLDER / f"{module}.py").read_text())[kernel]
    changed = _execute(mutant.module, mutant.source)
    if mutant.module == module:
        return changed[kernel]
    names = _execute(module, (_FOLDER / f"{module}.py").read_text())
    names.update({name: changed[name] for name in names if name in _functions(mutant.module)})
    return names[kernel]


def _functions(module: str) -> set[str]:
    original: ModuleType = importlib.import_module(f"tp_harness.kernels.{module}")
    return {name for name, value in vars(original).items() if getattr(value, "__module__", "") == original.__name__}


def _execute(module: str, source: str) -> dict[str, Any]:
    """Execute a source as a module of its own; its lines can be shown in errors."""
    path = f"<mutant of kernels/{module}.py>"
    linecache.cache[path] = (len(source), None, source.splitlines(keepends=True), path)
    names: dict[str, Any] = {"__name__": f"tp_harness.kernels.{module}"}
    exec(compile(source, path, "exec"), names)
    return names


def judge_all() -> Iterator[Verdict]:
    """Judge every mutant."""
    return map(judge, MUTANTS)
