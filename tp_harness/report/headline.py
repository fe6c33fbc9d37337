"""The one number that a cell of a table shows of a result, with its limit where that is not the usual one."""

from __future__ import annotations

from collections.abc import Iterable

from ..config.dtypes import SIXTEEN_BITS
from ..errors import printable
from ..judge.verdict import RATIO_ALARM, nearest_gate
from ..results.gate import RATIO, REL_L2
from ..results.proof import RESIDUES, at_most
from ..results.result import Gate, Result, Status
from ..results.tensor_names import is_result

WHOLE = (REL_L2, RATIO)  # measured over a whole tensor
_ERROR = "the relative L2 error against the float64 oracle"


def legend(results: Iterable[Result]) -> str:
    """A sentence on the meaning of the numbers in each dtype of these results that has any; "" if none has."""
    results = tuple(results)
    dtypes = {result.dtype for result in results if result.gates}
    errors = [dtype for dtype in ("float64", "float32") if dtype in dtypes]
    bounds = [result.proof.bound for result in results if result.proof]
    said = [_proved(max(bounds))] if bounds else []
    said += [f"{' and '.join(errors)}: rel_L2, {_ERROR}."] if errors else []
    sixteen = [dtype for dtype in SIXTEEN_BITS if dtype in dtypes]
    if sixteen:
        of = f"{'that error' if errors else _ERROR} over the error of one core in {' or '.join(sixteen)}"
        said.append(f"{' and '.join(sixteen)}: R, {of}; its limit is {RATIO_ALARM:g} unless it stands beside it.")
    said += ["The worst output of all draws (of weights and inputs)."] if said else []
    return " ".join((*said, *_meshes(results)))


def _meshes(results: Iterable[Result]) -> list[str]:
    """A sentence for each Case on its axes at every degree."""
    found: dict[str, dict[int, str]] = {}
    for result in results:
        if result.axes:
            found.setdefault(result.label, {})[result.tp] = result.axes
    return [
        f"{printable(label)}: {', '.join(f'tp {tp} is {axes}' for tp, axes in degrees.items())}."
        for label, degrees in found.items()
    ]


def _proved(bound: float) -> str:
    return (
        "exact: PROVED is the same function on the branches that were taken; another one is accepted with probability "
        f"{at_most(bound)} at most. DIFFERENT has the relative difference."
    )


def number_of(result: Result) -> Gate | None:
    """The gate that a cell shows: the one farthest over its limit, or, of a pass, that of the worst output.

    None where no number decided: an exact check failed, or the result is void.
    """
    over = tuple(gate for gate in result.gates if not gate.passed)
    if over:
        return nearest_gate(over)
    return worst_output(result) if result.status.passed else None


def worst_output(result: Result) -> Gate | None:
    """The gate over a whole output that is nearest to its limit, or farthest over it; None where none was compared."""
    whole = tuple(gate for gate in result.gates if gate.kind in WHOLE)
    return nearest_gate(tuple(gate for gate in whole if is_result(gate.tensor)) or whole)


def measure(result: Result, exact: str = "") -> str:
    """`2.1e-07`, `R 2.51 of 4.95` (the limit) or `worst token 1.2e-04 over 4.0e-05`; "" where there is none.

    Args:
        result: of a run; its number is a relative error, the ratio R of two, or that of what is DIFFERENT.
        exact: the word for a number that is 0, "" for the number itself.
    """
    gate = number_of(result)
    if gate is None:
        return _of_proof(result)
    if gate.value == 0 and exact:
        return exact
    against = "of" if gate.passed else "over"
    if gate.kind == RATIO:
        value = f"R {gate.value:.2f}" if gate.value < 10 else f"R {gate.value:.3g}"
        return value + (f" {against} {gate.limit:.2f}" if gate.limit != RATIO_ALARM else "")
    if gate.kind == REL_L2:
        return f"{gate.value:.1e}"
    return f"{gate.kind} {gate.value:.1e} {against} {gate.limit:.1e}"


def _of_proof(result: Result) -> str:
    """By how much outputs are DIFFERENT; "" of anything else."""
    return f"{result.proof.shadow:.1e}" if result.proof and result.status is Status.DIFFERENT else ""


def failed_by(result: Result) -> str:
    """The names of the exact checks that failed, such as `schedule`, or `router`; "" where a number failed."""
    checks = [check.name for check in result.checks if not check.passed and check.name != RESIDUES]
    if checks or result.status is not Status.MISMATCH or any(not gate.passed for gate in result.gates):
        return ", ".join(checks)
    return "router" if any(not flip.margin <= flip.limit for flip in result.flips) else ""


def cell(result: Result, exact: str = "") -> tuple[str, str]:
    """A cell's two texts: the word of the status ("" for a pass); failed checks and number. `exact` as `measure`."""
    number = measure(result, exact)
    if result.status is Status.PASS:
        return "", number
    return result.status.value, " ".join(filter(None, (failed_by(result), number)))
