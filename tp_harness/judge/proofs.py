"""The verdict on a run in exact arithmetic: equal residues prove, unequal ones beside unequal shadows refute.

What is equal modulo random primes at a random point is the same function on the branch that was taken, but for the
probability that `Proof` states (Schwartz and Zippel). Residues that differ beside equal shadows may be a rounding or an
identity that this arithmetic does not know: nothing is proved then, and nothing wrong either.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

import torch

from ..arithmetic.seen import TIE, Seen
from ..parallel.placements import Placement
from ..results.proof import RESIDUES, Proof, at_most
from ..results.result import Check, Result, Status, Worst
from . import distance
from .evidence import Evidence
from .exact_checks import anything_sharded, exact_checks
from .gather import Joined, join
from .same_checks import same_checks
from .shape_checks import form, presence

DEGREE = 10  # of the polynomials between two keyed functions, each of which is a new random point
AGREE = 1e-12  # float64 rounds less, in whatever order it sums
AGREE_ROUNDED = 3e-7  # where constants of float32 were made in two ways, they differ in their last digit
AGREE_LOST = 1e-3  # where an operation ran outside of exact arithmetic, perhaps in the dtype that it was given


def without_crash(result: Result) -> Result:
    """A result in exact arithmetic of a user's module that ran in another dtype: an error that is raised in exact
    arithmetic alone is no crash of the module, and nothing is proved.
    """
    if result.status is not Status.CRASH:
        return result
    reason = f"an error is raised in exact arithmetic alone, so that the other dtypes decide: {result.reason}"
    return replace(result, status=Status.NOT_PROVED, reason=reason)


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A tensor of all ranks beside the reference's: where residues differ or are unknown, bool in its full shape.

    `shadow` is the largest difference of an element in float64, relative to the usual size of the reference's.
    """

    name: str
    differs: torch.Tensor
    unknown: torch.Tensor
    shadow: float
    whole: bool = False  # integers or booleans, which are equal or not

    @property
    def equal(self) -> bool:
        """Whether every residue is known, and the same."""
        return not (self.differs.any() or self.unknown.any())


def prove(evidence: Evidence, blank: Result) -> Result:
    """Fill in `blank`, which names the task, with the verdict on the evidence of a run in exact arithmetic."""
    basic = presence(evidence) or form(evidence)
    escapes = list(_escapes(evidence))
    if basic and not (basic[0] is Status.NONFINITE and escapes):
        return replace(blank, status=basic[0], reason=basic[1])
    joined = evidence.joined
    compared = _compared(evidence, joined)
    checks = (*exact_checks(evidence, joined), *same_checks(evidence, joined))
    proof = replace(_proof(evidence, compared, escapes), draws=blank.draws)
    status, reason = _decide(evidence, compared, proof, escapes)
    if status is not Status.NOT_PROVED:
        checks = (*checks, Check(name=RESIDUES, passed=status is Status.PROVED, detail=reason))
    failed = "; ".join(f"{check.name}: {check.detail}" for check in checks if not check.passed)
    if failed:
        status, reason = status if status is Status.DIFFERENT else Status.MISMATCH, failed
    elif evidence.tp > 1 and not evidence.case.replicated and not anything_sharded(evidence):
        status = Status.VOID
        reason = f"nothing was sharded at tp {evidence.tp}: every rank held the full parameters and inputs"
    worst = None if status.passed else _worst(evidence, joined, compared)
    return replace(blank, status=status, reason=reason, checks=checks, proof=proof, worst=worst)


def undecided(evidence: Evidence, wrong: Collection[str]) -> tuple[str, ...]:
    """Why a run in exact arithmetic does not prove its outputs, but those that are known to be `wrong`; () if it does.

    The outputs have the right shapes, and shadows that agree.
    """
    compared = [each for each in _compared(evidence, evidence.joined) if each.name not in wrong]
    return _proof(evidence, compared, list(_escapes(evidence))).undecided


def _compared(evidence: Evidence, joined: Mapping[str, Joined]) -> list[Compared]:
    return [
        compare(
            evidence, evidence.outputs[name], name, output.full, evidence.expectation.oracle_of(evidence.dtype, name)
        )
        for name, output in joined.items()
    ]


def compare(
    evidence: Evidence, placement: Placement, name: str, full: torch.Tensor, expected: torch.Tensor
) -> Compared:
    """Compare a tensor of all ranks with the reference's.

    Args:
        evidence: the run.
        placement: of the tensor.
        name: its own.
        full: the ranks' shadows, joined: float64, or whole numbers; any shape.
        expected: the reference's, of the same shape.
    """
    own = evidence.expectation.baselines[evidence.dtype].residues.get(name, ())
    if expected.is_complex():
        shadow = _apart(*map(distance.as_real, (full, expected)))
        return Compared(
            name=name,
            differs=torch.zeros(full.shape, dtype=torch.bool),
            unknown=torch.ones(full.shape, dtype=torch.bool),
            shadow=shadow,
        )
    if not own:
        other = full != expected
        return Compared(
            name=name, differs=other, unknown=torch.zeros_like(other), shadow=float(other.any()), whole=True
        )
    differs, unknown = torch.zeros(expected.shape, dtype=torch.bool), torch.zeros(expected.shape, dtype=torch.bool)
    for prime, right in enumerate(own):
        key = f"{name}%{prime}"
        lacking = evidence.without(key)
        if lacking:
            unknown |= True
            continue
        residues = join(placement, evidence.shards(key))
        lost = (residues.full < 0) | (right < 0)
        unknown |= lost
        differs |= (residues.full.remainder(evidence.expectation.primes[prime]) != right) & ~lost
        differs |= residues.drift is not None
    return Compared(name=name, differs=differs, unknown=unknown, shadow=_apart(full, expected))


def _apart(full: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference of an element, relative to the root mean square of the finite expected ones."""
    actual, right = distance.bounded(full), distance.bounded(expected)
    return float((actual - right).abs().max()) / usual_size(right) if actual.isfinite().all() else math.inf


def usual_size(x: torch.Tensor) -> float:
    """The root mean square of the elements, of any shape, that are no masks; 1 where there are none but zeros."""
    ordinary = x[x.abs() < distance.MOST]
    return (float(ordinary.square().mean().sqrt()) if ordinary.numel() else 1.0) or 1.0


def _decide(evidence: Evidence, compared: list[Compared], proof: Proof, escapes: list[str]) -> tuple[Status, str]:
    """PROVED, NOT PROVED or DIFFERENT, and why."""
    worst = max(compared, key=lambda each: each.shadow)
    reference = evidence.expectation.baselines[evidence.dtype].seen or Seen()
    tie = _nearest(reference)[0] < TIE
    if worst.shadow > _limit(evidence, escapes) and not tie and math.isfinite(worst.shadow):
        return Status.DIFFERENT, _difference(worst, proof)
    if proof.undecided:
        return Status.NOT_PROVED, "; ".join(proof.undecided)
    elements = sum(each.differs.numel() for each in compared)
    return Status.PROVED, (
        f"the residues of {elements:,} elements are equal modulo {_primes(proof)} at a random point: another function "
        f"would be accepted with a probability of at most {at_most(proof.bound)}, typically {proof.typical:.0e}"
    )


def rounds_to(evidence: Evidence) -> float:
    """How far apart the shadows of one tensor may be, relative to its usual size, where no constants are rounded."""
    return AGREE_LOST if any(_escapes(evidence)) else AGREE


def _limit(evidence: Evidence, escapes: list[str]) -> float:
    """How far apart the shadows of right code may be."""
    if escapes:
        return AGREE_LOST
    return AGREE_ROUNDED if any(seen.rounded for seen in _all_seen(evidence)) else AGREE


def _difference(worst: Compared, proof: Proof) -> str:
    wrong = worst.differs | worst.unknown
    if worst.whole:
        return f"{worst.name} is another function: {int(wrong.sum()):,} of {wrong.numel():,} elements are other numbers"
    return (
        f"{worst.name} is another function: {int(wrong.sum()):,} of {wrong.numel():,} elements have other residues "
        f"modulo {_primes(proof)}, which no rounding gives; in float64 they are up to {worst.shadow:.1e} of the usual "
        "size off"
    )


def _primes(proof: Proof) -> str:
    return " and ".join(str(p) for p in proof.primes)


def _proof(evidence: Evidence, compared: list[Compared], escapes: list[str]) -> Proof:
    primes, seen = evidence.expectation.primes, _all_seen(evidence)
    margin, kind = min((_nearest(each) for each in seen), default=(math.inf, ""))
    undecided = list(escapes)
    if margin < TIE:
        undecided.append(f"{_KINDS.get(kind, kind)} is a tie: its margin is {margin:.0e} of what is compared")
    for each in compared:
        if not each.equal and not escapes:
            undecided.append(_not_equal(each, sum(own.zeros for own in seen)))
    return Proof(
        primes=primes,
        draws=1,
        bound=DEGREE / min(primes),
        typical=math.prod(2 / p for p in primes),
        coverage=tuple(_coverage(seen[0])),
        margin=margin,
        margin_of=_KINDS.get(kind, kind),
        undecided=tuple(undecided),
        shadow=max((each.shadow for each in compared), default=0.0),
        unequal=tuple(each.name for each in compared if not each.equal),
    )


def _not_equal(each: Compared, zeros: int) -> str:
    """Why the residues of a tensor do not prove it, though its shadow agrees."""
    count, total = int((each.differs | each.unknown).sum()), each.differs.numel()
    what = f"{count:,} of {total:,} residues of {each.name}"
    if each.unknown.any() and not each.differs.any():
        return f"{what} are unknown"
    if zeros:
        return f"{what} differ, and {zeros} denominators are 0 modulo a prime: another --seed decides"
    return (
        f"{what} differ while float64 agrees to {each.shadow:.0e}: a rounding, or an identity that exact arithmetic "
        "does not know"
    )


_KINDS = {
    "topk": "the choice of the top k",
    "sort": "an order",
    "max": "a maximum",
    "min": "a minimum",
    "clamp": "a clamp",
    "relu": "a relu",
    "maximum": "a maximum of two",
    "minimum": "a minimum of two",
    "sign": "a sign",
}


def _nearest(seen: Seen) -> tuple[float, str]:
    """The smallest margin, and of which kind of decision."""
    return min(((branch.margin, kind) for kind, branch in seen.branches.items()), default=(math.inf, ""))


def _coverage(seen: Seen) -> Iterator[str]:
    """Sentences on the branches that the reference took."""
    for kind, branch in seen.branches.items():
        whole = branch.counts.get("all", 0)
        if kind == "topk" and whole:
            yield f"top k: {branch.counts['chosen']} of {whole} chosen, in {branch.decisions:,} comparisons"
        elif kind == "softmax" and branch.counts.get("masked"):
            yield f"softmax: {branch.counts['masked'] / whole:.0%} of {whole:,} scores masked"
        elif kind in ("clamp", "relu") and whole:
            sides = (
                f"{branch.counts[side] / whole:.2%} {side}" for side in ("below", "above") if side in branch.counts
            )
            yield f"{kind}: {', '.join(sides)}"
        elif branch.decisions:
            yield f"{_KINDS.get(kind, kind)}: {branch.decisions:,} decisions"


def _all_seen(evidence: Evidence) -> list[Seen]:
    """Of the reference first, then of each rank."""
    found = [evidence.expectation.baselines[evidence.dtype].seen, *(run.seen for run in evidence.runs.values())]
    return [seen for seen in found if seen is not None]


def _escapes(evidence: Evidence) -> Iterator[str]:
    """What left exact arithmetic, the reference's first; what several ranks say alike, once."""
    reference = evidence.expectation.baselines[evidence.dtype].seen
    for sentence in reference.escapes if reference else ():
        yield f"in the reference, {sentence}"
    said: dict[str, int] = {}
    for rank, run in evidence.runs.items():
        for sentence in run.seen.escapes if run.seen else ():
            said.setdefault(sentence, rank)
    for sentence, rank in said.items():
        yield f"on rank {rank}, {sentence}"


def _worst(evidence: Evidence, joined: Mapping[str, Joined], compared: list[Compared]) -> Worst | None:
    """The element farthest off in the output that is farthest off."""
    worst = max(compared, key=lambda each: each.shadow)
    if not math.isfinite(worst.shadow) or not worst.differs.any():
        return None
    expected = evidence.expectation.oracle_of(evidence.dtype, worst.name)
    return evidence.worst(worst.name, joined[worst.name].full, expected)
