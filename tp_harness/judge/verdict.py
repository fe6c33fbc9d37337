"""The verdict on measured errors: the limits, their reasons, and the status of a failure. No torch.

float64 and float32 are judged against the float64 oracle. A bfloat16 run is judged against the error that bfloat16
itself makes on a single core; its routing is locked to the oracle's, because a top-k flip is no rounding error.

Random rounding errors of a sum of K terms grow as sqrt(K) (Higham and Mary, "A New Approach to Probabilistic Rounding
Error Analysis", SIAM J. Sci. Comput. 41(5), 2019). All limits are relative errors, or ratios of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from ..config.dtypes import SIXTEEN_BITS as SIXTEEN_BITS  # noqa: PLC0414
from ..results.gate import RATIO, REL_L2, TOKEN
from ..results.result import Check, Collective, Distance, Flip, Gate, Result, Status


@dataclass(frozen=True, kw_only=True)
class Precision:
    """How near to the oracle a run in a dtype must come.

    Args:
        digits: binary digits; a rounding is off by 2^-digits at most.
        floor: the least limit, in units of sqrt(K) 2^-digits.
        ceiling: no limit exceeds it.
    """

    digits: int
    floor: float
    ceiling: float

    def rounding(self, reduction: int) -> float:
        """The usual relative error of a sum of `reduction` terms."""
        return math.sqrt(reduction) * 2.0**-self.digits


PRECISIONS = {
    # The single-core run in float64 is mostly the oracle itself: its error is 0, and the floor is the limit. Clean runs
    # lie below 1.7e-15, or 3.2e-15 at hidden 2880, a tenth of it; the weakest fault, at 2.3e-6, is far above.
    "float64": Precision(digits=53, floor=16.0, ceiling=1e-12),
    "exact": Precision(digits=53, floor=16.0, ceiling=1e-12),  # of its shadows, by which a known mistake is recognised
    # Here the floor is for components whose single-core error happens to be tiny. Clean runs lie below 1.5e-6, all but
    # the weakest faults above 1e-3.
    "float32": Precision(digits=24, floor=0.25, ceiling=1e-5),
}
# Further layers add roundings of their own, so the ceiling rises as sqrt(layers / 2): a clean model has an error of
# 1.3e-6 with 2 layers and of 7.2e-6 with 24.
CEILING_LAYERS = 2
# Sharding reorders sums, which moves an error but hardly multiplies it: 1.02 x at most in 576 clean runs. The weakest
# fault, a gate clamped on both sides, is 4.4 x at hidden 2880.
BASELINE_FACTOR = 3.0
LOCAL_FACTOR = 4.0  # one token may be this much worse than the whole: it averages over fewer elements
RATIO_ALARM = 1.2  # clean bfloat16 runs with locked routing lie below 1.09
RATIO_CLEAN = 1.09
# Two errors of n independent roundings each have a ratio whose logarithm spreads by 1 / sqrt(n): 4 of those leave one
# clean tensor in 30,000 outside. It matters below 2,000 elements; a single token of hidden 96 has shown 1.24.
RATIO_SPREAD = 4.0
RATIO_NOTE = 0.8
SUMS = ("all_reduce", "reduce_scatter", "reduce")
# An own module may round partial results that a single core does not have: a ring of 8 ranks, each of which adds a
# rounded part, shows 1.1 times the limit. The mistakes that bfloat16 sees lie at 10 times and more.
SLIGHTLY = 2.0
ROUTER_FACTOR = 4.0  # both scores of a flipped pair may be off, each by twice the largest error seen


def error_gates(
    dtype: str, name: str, actual: Distance, baseline: Distance, *, reduction: int, layers: int = 1
) -> tuple[Gate, ...]:
    """The gates of one output: over all of it, and for its worst token.

    A rank's share of the features has none of its own: at tp ranks an error in it alone is 1 / sqrt(tp) of that over
    all, so that with the factor of a token's it would decide above tp 16 alone, and no known fault needs it there.

    Args:
        dtype: of the run, a name in PRECISIONS.
        name: the output's name.
        actual: the sharded run against the oracle.
        baseline: the single-core reference in the same dtype against the oracle.
        reduction: elements K of the longest sum; random rounding errors grow as sqrt(K).
        layers: how many layers, one after the other, the output went through.
    """
    precision = PRECISIONS[dtype]
    ceiling = precision.ceiling * math.sqrt(max(1.0, layers / CEILING_LAYERS))
    rounding = precision.floor * precision.rounding(reduction)

    def gate(kind: str, value: float, base: float, factor: float) -> Gate:
        explained = max(BASELINE_FACTOR * base, factor * rounding)
        limit = min(factor * ceiling, explained)
        reason = (
            f"max({BASELINE_FACTOR:g} x single-core error {base:.1e}, "
            f"{factor * precision.floor:g} sqrt({reduction}) 2^-{precision.digits}), "
            f"at most {factor * ceiling:.0e}"
        )
        undecided = limit < value <= explained
        return Gate(kind=kind, tensor=name, value=value, limit=limit, reason=reason, undecided=undecided)

    return (
        gate(REL_L2, actual.rel_l2, baseline.rel_l2, 1.0),
        gate(TOKEN, actual.token, baseline.token, LOCAL_FACTOR),
    )


def zero_gate(name: str, largest: float) -> Gate:
    """The gate of a tensor that is zero everywhere in the reference; `largest` is the ranks' largest number in it."""
    return Gate(kind=REL_L2, tensor=name, value=math.inf if largest else 0.0, limit=0.0, reason="the reference is zero")


def bfloat16_gate(name: str, actual: Distance, baseline: Distance, sums: Sums | None = None) -> Gate:
    """The gate of R, the sharded run's relative error divided by the single-core reference's in the same dtype.

    Where the reference is exact (a lookup), the sharded run must be exact too.

    Args:
        name: the output's name.
        actual: the sharded run against the oracle.
        baseline: the single-core reference in bfloat16 against the oracle.
        sums: how the ranks' parts were added, if they were.
    """
    exact = baseline.rel_l2 == 0.0
    ratio = (0.0 if actual.rel_l2 == 0.0 else math.inf) if exact else actual.rel_l2 / baseline.rel_l2
    reason = f"single-core error {baseline.rel_l2:.1e}; clean runs with locked routing stay below 1.09"
    if sums:
        reason += f"; {sums.reason}"
    few = RATIO_CLEAN * math.exp(RATIO_SPREAD / math.sqrt(actual.elements)) if actual.elements else 0.0
    if few > RATIO_ALARM:
        reason += f"; only {actual.elements} elements, whose chance widens the limit to {few:.2f}"
    limit = max(RATIO_ALARM, few) * math.sqrt(1.0 + (sums.roundings if sums else 0.0))
    return Gate(kind=RATIO, tensor=name, value=ratio, limit=limit, reason=reason)


@dataclass(frozen=True)
class Sums:
    """How many more roundings of the result than on a single core come from adding the ranks' parts, and why."""

    roundings: float
    reason: str


def sums_of(calls: Iterable[Collective], *, planned: bool) -> Sums | None:
    """The roundings that the recorded or planned sums over ranks add to a 16-bit run; None if they add none.

    In 16 bits a ring over N ranks rounds N - 1 running sums whose size grows as sqrt(k / N), which adds up to N / 2
    roundings of the result. In float32 the parts themselves may have come from a 16-bit matmul: N roundings of parts
    of size 1 / sqrt(N) are one of the result. A plan says in which dtype parts are; without one they may be rounded.

    Args:
        calls: of one rank, or the planned ones.
        planned: whether they are the planned ones.
    """
    calls = tuple(calls)
    over = reduced_in_16_bits(calls)
    if over > 1:
        return Sums(over / 2, f"sums over {over} ranks in 16 bits, which widens the limit by sqrt(1 + {over}/2)")
    if not planned and any(c.kind in SUMS and c.group_size > 1 for c in calls):
        return Sums(1.0, "the parts that are summed may have been rounded, which widens the limit by sqrt(2)")
    return None


def reduced_in_16_bits(calls: Iterable[Collective]) -> int:
    """Ranks of the largest group over which one of the calls summed in a 16-bit dtype; 1 if none did."""
    sizes = [c.group_size for c in calls if c.kind in SUMS and c.dtype in SIXTEEN_BITS]
    return max(sizes, default=1)


def flip_limit(baseline_error: float, reduction: int, sums: Sums | None = None, dtype: str = "float32") -> float:
    """The widest margin of the oracle's router that rounding can overturn, as a fraction of the scores at stake.

    Args:
        baseline_error: the largest relative error of the single-core reference's scores: it is not measured on the
            ranks, so that a wrong router cannot excuse itself.
        reduction: elements K of the longest sum.
        sums: how the ranks' parts were added before, if they were.
        dtype: of the run; a 16-bit one has a baseline error beside which this rounding is nothing.
    """
    precision = PRECISIONS.get(dtype, PRECISIONS["float32"])
    rounding = max(1.0, precision.floor) * precision.rounding(reduction)
    return ROUTER_FACTOR * max(baseline_error, rounding) * math.sqrt(1.0 + (sums.roundings if sums else 0.0))


def decide(
    checks: tuple[Check, ...], gates: tuple[Gate, ...], flips: tuple[Flip, ...], *, void: str | None
) -> tuple[Status, str]:
    """Status and reason: exact checks first, then gates, then router flips, then `void`, why the run proves nothing."""
    for check in checks:
        if not check.passed:
            return Status.MISMATCH, f"{check.name}: {check.detail}"
    failed = [gate for gate in gates if not gate.passed and not gate.undecided]
    if failed:
        worst = max(failed, key=severity)
        return (
            Status.MISMATCH,
            f"{worst.metric} is {worst.value:.2e}, limit {worst.limit:.2e} ({worst.reason})",
        )
    wide = [flip for flip in flips if not flip.margin <= flip.limit]
    if wide:
        flip = max(wide, key=lambda f: f.margin)
        return Status.MISMATCH, (
            f"router {flip.layer}: token {flip.token} chose experts {list(flip.chosen)} instead of "
            f"{list(flip.expected)}, a margin of {flip.margin:.2e} where rounding explains {flip.limit:.2e}"
        )
    undecided = max((gate for gate in gates if gate.undecided), key=severity, default=None)
    if undecided:
        return Status.VOID, (
            f"{undecided.metric} is {undecided.value:.2e}, over {undecided.limit:.0e}, and so is what the single-core "
            "reference itself is off: on these inputs and weights float32 decides nothing; choose smaller ones"
        )
    if void:
        return Status.VOID, void
    nearest = nearest_gate(gates)
    return (
        Status.PASS,
        f"{nearest.metric} is {nearest.value:.2e}, limit {nearest.limit:.2e}" if nearest else "",
    )


def rejected_otherwise(checks: tuple[Check, ...], flips: tuple[Flip, ...]) -> bool:
    """Whether a check or a router flip rejects the run."""
    return not all(check.passed for check in checks) or not all(flip.margin <= flip.limit for flip in flips)


def as_float32_rounds(gates: tuple[Gate, ...], reduction: int) -> bool:
    """Whether roundings to float32 alone, over a sum of `reduction` terms, give every error that exceeds its limit."""
    rounding = PRECISIONS["float32"].rounding(reduction)
    failed = (gate for gate in gates if not gate.passed)
    return all(gate.value <= (LOCAL_FACTOR if gate.kind == TOKEN else 1.0) * rounding for gate in failed)


def reconciled(result: Result, exact: Result, *, planned: bool) -> Result:
    """A result reconciled with the float32 one of the same target and degree: in 16 bits it may become UNDECIDED.

    A mistake that is small beside the roundings of 16 bits passes there, and float32 rejects it. Roundings that a
    single core does not make look like a small mistake in 16 bits, and float32 passes: where the sums over ranks are
    planned, the limit allows for them; a user's module may round in other places.

    Args:
        result: of any dtype.
        exact: in float32.
        planned: whether the collectives are planned.
    """
    gate = result.gate
    if result.dtype not in SIXTEEN_BITS or gate is None or math.isnan(gate.value):
        return result
    said = f"{gate.metric} is {gate.value:.2f}, limit {gate.limit:.2f}"
    if result.status is Status.PASS and exact.status is Status.MISMATCH:
        reason = f"{said}: what float32 rejects is too small to be seen beside the roundings of {result.dtype}"
        return replace(result, status=Status.UNDECIDED, reason=reason)
    otherwise = rejected_otherwise(result.checks, result.flips)
    slightly = not otherwise and 1.0 < severity(gate) <= SLIGHTLY and not planned
    if result.status is Status.MISMATCH and exact.status is Status.PASS and slightly:
        reason = (
            f"{said}: float32 passes, and roundings of {result.dtype} that a single core does not make look like this"
        )
        return replace(result, status=Status.UNDECIDED, reason=reason)
    return result


def severity(gate: Gate) -> float:
    """A gate's value as a fraction of its limit: over 1 it failed, and inf is a NaN, or any error over a limit of 0."""
    if math.isnan(gate.value):
        return math.inf
    return gate.value / gate.limit if gate.limit else (math.inf if gate.value else 0.0)


def nearest_gate(gates: tuple[Gate, ...]) -> Gate | None:
    """The gate with the largest `severity`; None if there is none."""
    return max(gates, key=severity, default=None)
