"""Which tensor went wrong first: tapped tensors of all ranks against the reference's, in order of execution.

The limits are those of the verdict, with the single-core error of the same tensor as the measure. Replicas are compared
bit for bit, summands by their sum in float64, chosen experts as sets.

Not covered: which rank of a sum over ranks is wrong (diagnosis may tell), and what lies between two taps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import torch

from ..case.taps import CHOSEN, PER_EXPERT, same_choice, tap_name
from ..judge import verdict
from ..judge.distance import bounded
from ..judge.evidence import Evidence
from ..judge.gates import limits
from ..judge.proofs import rounds_to, usual_size
from ..judge.router_flips import router_flips
from ..parallel.on_mesh import owners
from ..parallel.placements import Placement
from ..prepare.oracle import Tapped
from ..ranks.rank_files import digest
from ..results.result import Divergence, Gate
from ..results.tensor_names import call_of, of_call, without_call
from .trace import ShapeError, Traced, trace

NAN = float("nan")


def first_divergence(evidence: Evidence, tapped: Tapped) -> tuple[Divergence, Traced | None] | None:
    """The first tensor out of its limit, and the tensor itself unless its shape is wrong; None when all are within."""
    return next(divergences(evidence, tapped), None)


def divergences(evidence: Evidence, tapped: Tapped) -> Iterator[tuple[Divergence, Traced | None]]:
    """All tensors out of their limits, in order of execution; nothing after one whose shape is wrong."""
    after = ""
    try:
        for traced in trace(evidence, tapped):
            found = _divergence(evidence, traced)
            if found:
                token = _token(evidence, tapped, traced, found.index)
                yield replace(found, after=after, token=token), traced
            else:
                after = traced.name
    except ShapeError as error:
        wrong = _divergent(error.name, "shape", (error.rank,), detail=str(error))
        yield replace(wrong, after=after), None


def _divergence(evidence: Evidence, traced: Traced) -> Divergence | None:
    """What is wrong with a tensor, the plainest first."""
    if traced.leaf == CHOSEN and without_call(traced.name) in _choices(evidence):
        return _other_choice(evidence, traced)
    return _not_finite(traced) or (_other_residues if traced.residues else _out_of_limit)(evidence, traced)


def _divergent(name: str, kind: str, ranks: Sequence[int], **fields: object) -> Divergence:
    defaults = {"after": "", "index": (), "actual": NAN, "expected": NAN}
    return Divergence(tensor=name, kind=kind, ranks=tuple(ranks), **(defaults | fields))  # type: ignore[arg-type]


def _not_finite(traced: Traced) -> Divergence | None:
    odd = {rank: ~torch.isfinite(shard) for rank, shard in enumerate(traced.shards)}
    if not traced.summed:  # -inf where the reference has it masks something
        odd = {r: x & (traced.shards[r] != traced.shard_of(traced.expected, r)) for r, x in odd.items()}
    wrong = [rank for rank, places in odd.items() if places.any()]
    if not wrong:
        return None
    shard = traced.shards[wrong[0]]
    flat = int(odd[wrong[0]].flatten().nonzero()[0])
    index = traced.whole_index(wrong[0], flat)
    values = {"actual": shard.flatten()[flat].item(), "expected": traced.expected[index].item()}
    return _divergent(traced.name, "nonfinite", wrong, index=index, **values)


def first_unequal(evidence: Evidence, tapped: Tapped) -> tuple[str, tuple[int, ...]] | None:
    """The first tensor whose residues are not all known and equal, and the ranks that hold it so; it need not be wrong.

    Raises:
        PlacementError: a user's placement cannot cut a tensor before it.
    """
    for traced in trace(evidence, tapped):
        ranks = [rank for rank in range(traced.tp) if (traced.differs(rank) | traced.unknown(rank)).any()]
        if ranks:
            return traced.name, tuple(ranks)
    return None


def _other_residues(evidence: Evidence, traced: Traced) -> Divergence | None:
    """Elements with other residues, and of these the one farthest off in float64.

    Where float64 does not tell the tensor from the right one, it is not called wrong, unless ranks that must hold the
    same do not; where residues are unknown, float64 alone decides.
    """
    least = rounds_to(evidence) * usual_size(bounded(traced.expected))
    errors = {rank: _error(traced, rank) for rank in range(traced.tp)}
    places = {rank: traced.differs(rank) | (traced.unknown(rank) & (errors[rank] > least)) for rank in errors}
    errors = {rank: error.masked_fill(~places[rank], -1.0) for rank, error in errors.items()}
    wrong = [rank for rank, differs in places.items() if differs.any()]
    apart = max(error.max().item() for error in errors.values()) > least
    odd = [] if apart else _odd_replicas(traced.placement, [own.shards for own in traced.residues])
    if not wrong or not (apart or odd):
        return None
    worst = max(wrong, key=lambda rank: errors[rank].max().item())
    flat = int(errors[worst].argmax())
    index = traced.whole_index(worst, flat)
    count, total = (
        sum(int(n) for n in each) for each in ((places[r].sum() for r in wrong), (places[r].numel() for r in wrong))
    )
    return _divergent(
        traced.name,
        "value",
        wrong,
        index=index,
        actual=_held(traced, worst).flatten()[flat].item(),
        expected=traced.expected[index].item(),
        detail=f"{count:,} of {total:,} elements have other residues",
    )


def _out_of_limit(evidence: Evidence, traced: Traced) -> Divergence | None:
    """Replicas that differ, or values out of the limit; `ranks` are those that are wrong."""
    odd = _odd_replicas(traced.placement, [traced.shards])
    if not odd and torch.equal(_wide(traced.full), _wide(traced.expected)):
        return None  # also of numbers that have no error to compare with: all zero, or whole ones
    gates = _gates(evidence, traced, traced.full, traced.expected, traced.baseline)
    if not odd and all(gate.passed for gate in gates):
        return None
    ranks = list(range(traced.tp)) if traced.summed else _wrong_ranks(evidence, traced) or odd
    ranks = ranks or [_worst_rank(traced)]
    worst = max(ranks, key=lambda rank: _error(traced, rank).max().item())
    flat = int(_error(traced, worst).argmax())
    index = traced.whole_index(worst, flat)
    return _divergent(
        traced.name,
        "replicas" if odd else "value",
        ranks,
        index=index,
        actual=_number(_held(traced, worst).flatten()[flat]),
        expected=_number(traced.expected[index]),
        gate=max(gates, key=verdict.severity),
        detail="ranks that must hold the same bits differ" if odd else "",
    )


def _gates(
    evidence: Evidence, traced: Traced, full: torch.Tensor, expected: torch.Tensor, baseline: torch.Tensor
) -> tuple[Gate, ...]:
    """The tensor's gates; whole heads count as features, so that a block of features is what one rank holds."""
    heads = getattr(traced.placement, "dim", -1) == -2
    full, expected, baseline = (x.flatten(-2) if heads else x for x in (full, expected, baseline))
    return limits(evidence, traced.name, full, (expected, baseline))


def _odd_replicas(placement: Placement, tensors: Sequence[Sequence[torch.Tensor]]) -> list[int]:
    """Ranks that hold other bits than most of those that must hold the same; the later ones where none are most.

    `tensors`: each by rank, any shape and dtype.
    """
    ranks = range(len(tensors[0]))
    first = owners(placement, len(ranks)) or ranks
    digests = [" ".join(digest(shards[rank]) for shards in tensors) for rank in ranks]
    odd: list[int] = []
    for owner in dict.fromkeys(first):
        own = [rank for rank in ranks if first[rank] == owner]
        usual = Counter(digests[rank] for rank in own).most_common(1)[0][0]
        odd += [rank for rank in own if digests[rank] != usual]
    return odd


def _wrong_ranks(evidence: Evidence, traced: Traced) -> list[int]:
    """Ranks whose own part is out of its limit; equal parts are looked at once."""
    verdicts: dict[str, bool] = {}
    wrong = []
    for rank, shard in enumerate(traced.shards):
        expected, baseline = (traced.shard_of(x, rank) for x in (traced.expected, traced.baseline))
        key = f"{digest(shard)} {expected.storage_offset()}"
        if key not in verdicts:
            verdicts[key] = all(g.passed for g in _gates(evidence, traced, shard, expected, baseline))
        wrong += [] if verdicts[key] else [rank]
    return wrong


def _worst_rank(traced: Traced) -> int:
    return max(range(traced.tp), key=lambda rank: _error(traced, rank).norm().item())


def _held(traced: Traced, rank: int) -> torch.Tensor:
    return traced.full if traced.summed else traced.shards[rank]


def _error(traced: Traced, rank: int) -> torch.Tensor:
    error = _wide(_held(traced, rank)) - traced.shard_of(traced.expected, rank)
    return error.abs().nan_to_num(nan=0.0)  # -inf - -inf


def _wide(x: torch.Tensor) -> torch.Tensor:
    """In float64, or complex128."""
    return x.to(torch.complex128 if x.is_complex() else torch.float64)


def _number(x: torch.Tensor) -> float:
    """A number that can be shown: of a complex one, its size."""
    return float(x.abs() if x.is_complex() else x)


def _choices(evidence: Evidence) -> list[str]:
    return [router.chosen for router in evidence.case.routers]


def _other_choice(evidence: Evidence, traced: Traced) -> Divergence | None:
    """The token with the widest margin among those whose other choice rounding does not explain."""
    choice = without_call(traced.name)
    owner = choice.rpartition(".")[0] or evidence.case.name
    right = traced.expected.flatten(0, -2)
    own, before = evidence.shards(choice), _tokens_before(evidence, traced)
    flips = (replace(flip, token=flip.token - before) for flip in router_flips(evidence) if flip.layer == owner)
    wide = [flip for flip in flips if 0 <= flip.token < len(right) and not flip.margin <= flip.limit]
    if not wide:
        return None
    flip = max(wide, key=lambda f: f.margin)
    tokens = torch.tensor([f.token for f in wide])
    wrong = [r for r, chosen in enumerate(own) if not same_choice(chosen[tokens + before], right[tokens]).all()]
    position = traced.whole_index(0, flip.token * right.shape[-1])[:-1]
    detail = f"experts {list(flip.chosen)} instead of {list(flip.expected)}, a margin of {flip.margin:.2e} where "
    detail += f"rounding explains {flip.limit:.2e}"
    gate = Gate(kind="margin of the choice", value=flip.margin, limit=flip.limit, reason="router logits' rounding")
    return _divergent(traced.name, "choice", wrong, index=position, gate=gate, detail=detail)


def _tokens_before(evidence: Evidence, traced: Traced) -> int:
    """How many tokens a router has chosen for in the calls before that of its choice."""
    calls = list(evidence.expectation.calls.each)
    earlier = calls[: calls.index(call_of(traced.name))]
    taps = evidence.expectation.run_tapped(evidence.dtype).oracle.taps if earlier else {}
    names = (of_call(call, without_call(traced.name)) for call in earlier)
    return sum(taps[name].shape[:-1].numel() for name in names if name in taps)


def _token(evidence: Evidence, tapped: Tapped, traced: Traced, index: tuple[int, ...]) -> tuple[int, int] | None:
    """(row, position) of an index, for built-in components, whose inputs are (batch, seq, ...)."""
    if not evidence.case.rows_are_tokens or not index:
        return None
    batch, seq = tapped.inputs_of(call_of(traced.name))[0].shape[:2]
    if traced.leaf in PER_EXPERT:
        chosen = tapped.oracle.taps[tap_name(traced.name.rpartition(".")[0], CHOSEN)].flatten(0, -2)
        row, position = divmod(_token_of_row(chosen, index[0]), seq)
        return row, position
    return (index[0], index[1]) if traced.expected.shape[:2] == (batch, seq) else None


def _token_of_row(chosen: torch.Tensor, row: int) -> int:
    """The token behind a row of what was joined over experts, in ascending order of experts and tokens."""
    pairs: Iterable[torch.Tensor] = ((chosen == e).any(-1).nonzero()[:, 0] for e in range(int(chosen.max()) + 1))
    return int(torch.cat(list(pairs))[row])
