"""Which known mistakes are named: whose guess is the tensor that the ranks have, reproduced and not resembled.

In floating point, it must lie within the clean error of that tensor. In exact arithmetic, where the float64 shadows are
like it, the guess is made again with numbers, and must have the very residues.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from math import sqrt
from typing import NamedTuple

import torch

from ..config.dtypes import EXACT
from ..judge import distance, verdict
from ..judge.gates import sums_in
from ..parallel.placements import PlacementError
from ..results.gate import REL_L2
from ..results.result import Cause, Distance, Gate
from .numbered import numbered
from .signature import Guess, Signature, Tried, carry
from .site import Site, UnavailableError

EXPLAINED = 0.9  # the least share of the squared error: the rest, at most a third of the error, is rounding
AMPLIFIED = 8.0  # a mistake may carry rounding this many times further than the right code
INERT = 1e-6  # share of the squared error by which what a mistake gives differs from what is right
EQUALLY = 2.0  # of several that reproduce the numbers, those with up to this many times the least residual are named


class Fit(NamedTuple):
    """How near a guess is to what was seen.

    `exact`: whether it has the same residues, None where that is not known.
    """

    gates: tuple[Gate, ...]
    explained: float
    exact: bool | None = None

    @property
    def reproduces(self) -> bool:
        """The same residues; where these are not known, within the clean error, a small part of what is explained."""
        if self.exact is not None:
            return self.exact
        return all(gate.passed for gate in self.gates) and self.explained >= EXPLAINED


class Diagnosis(NamedTuple):
    """What became of the signatures: `causes` are told, nearest first; `alternatives` fit too, but say less.

    `refuted`: the names of those whose guesses differ from what is right and from what was seen; `tried`: how many
    guesses there were.
    """

    causes: tuple[Cause, ...] = ()
    alternatives: tuple[Cause, ...] = ()
    refuted: tuple[str, ...] = ()
    tried: int = 0

    def after(self, earlier: Diagnosis) -> Diagnosis:
        """This diagnosis, and what was refuted and tried at an earlier place, where no cause was found."""
        refuted = dict.fromkeys((*earlier.refuted, *self.refuted))
        fitting = {cause.name for cause in (*self.causes, *self.alternatives)}
        return self._replace(
            refuted=tuple(name for name in refuted if name not in fitting), tried=earlier.tried + self.tried
        )


def diagnose(site: Site, leaves: Iterable[str], signatures: Sequence[Signature]) -> Diagnosis:
    """The signatures that reproduce the wrong tensor.

    Args:
        site: where the first wrong tensor is.
        leaves: its own leaf, and those just before it that were not tapped.
        signatures: the known mistakes.
    """
    partly = () if site.traced.summed or len(site.wrong) == site.tp else (True,)
    tries = (t._replace(partly=p) for t in _guesses(site, leaves, signatures) for p in (False, *partly))
    fits = [(tried, fit) for tried in tries if (fit := _placed_fit(tried))]
    like = [(tried, fit) for tried, fit in fits if fit.reproduces]
    found = [(tried, fit) for tried, fit in like if fit.exact] or like
    lowest = min((tried.level for tried, _ in found), default=0)
    causes = _named(found, lambda tried: tried.level == lowest)
    told = {cause.name for cause in causes}
    fitting = {tried.signature.name for tried, _ in like}
    acting = dict.fromkeys(tried.signature.name for tried, fit in fits if abs(fit.explained) > INERT)
    return Diagnosis(
        causes=causes,
        alternatives=_named(found, lambda tried: tried.signature.name not in told),
        refuted=tuple(name for name in acting if name not in fitting),
        tried=len(fits),
    )


def _named(found: Sequence[tuple[Tried, Fit]], which: Callable[[Tried], bool]) -> tuple[Cause, ...]:
    """The nearest of those that are meant, and the others that are about as near, each name once."""
    causes = [_cause(tried, fit) for tried, fit in found if which(tried)]
    causes.sort(key=lambda cause: float(f"{cause.residual:.2g}"))  # the same numbers: in the order of trying
    near = [cause for cause in causes if cause.residual <= EQUALLY * causes[0].residual]
    return tuple({cause.name: cause for cause in reversed(near)}.values())[::-1]


def _guesses(site: Site, leaves: Iterable[str], signatures: Sequence[Signature]) -> Iterator[Tried]:
    for leaf in leaves:
        for signature in signatures:
            if leaf in signature.on or (not signature.on and leaf == site.target):
                place = site.at(leaf)
                try:
                    for number, guess in enumerate(signature.guess(place)):
                        yield Tried(signature, place, number, guess)
                except _inapplicable(place):
                    continue


def _inapplicable(place: Site) -> tuple[type[Exception], ...]:
    """What a signature raises that does not apply; one made for a whole forward may not fit the shapes of a call."""
    return (UnavailableError, PlacementError, *((RuntimeError, IndexError) if place.call else ()))


def _cause(tried: Tried, fit: Fit) -> Cause:
    where = ", on the wrong ranks alone" if tried.partly else ""
    return Cause(
        name=tried.signature.name,
        sentence=tried.signature.sentence.format(detail=tried.guess.detail, tp=tried.place.tp).strip() + where,
        explained=1.0 if fit.exact else fit.explained,
        residual=0.0 if fit.exact else fit.gates[0].value,  # of the shadows, which are rounded, it says nothing
        limit=fit.gates[0].limit,
        exact=bool(fit.exact),
    )


def _placed_fit(tried: Tried) -> Fit | None:
    try:
        return _fit(tried)
    except PlacementError:  # a user's placement cannot cut the guess
        return None


def _fit(tried: Tried) -> Fit | None:
    """What the ranks hold against a guess, all ranks as one; None where the guess has another size."""
    place, guess = tried.place, tried.guess
    sides = _sides(place, guess, partly=tried.partly)
    if sides is None:
        return None
    actual, guessed = sides
    mismatch = _mismatch(place.at(place.target), len(actual))
    if mismatch == 0.0:
        return None
    left = (actual - guessed).sum(dim=0) if place.traced.summed else actual - guessed
    explained = 1 - (left.norm() / mismatch).square().item()
    fit = Fit(_gates(place, actual, guessed, None), explained)
    if place.evidence.dtype == EXACT:
        return fit._replace(exact=_has_residues(tried)) if explained >= EXPLAINED else fit
    if fit.reproduces or explained < EXPLAINED:
        return fit
    rounded = _rounded(tried)
    return fit if rounded is None else Fit(_gates(place, actual, guessed, rounded), explained)


def _sides(place: Site, guess: Guess, *, partly: bool) -> tuple[torch.Tensor, torch.Tensor] | None:
    """What is seen and what is guessed, of all ranks, stacked."""
    try:
        value = carry(place, guess.value)
    except _inapplicable(place):
        return None
    traced, seen = place.traced, list(place.traced.shards)
    if guess.seen is not None:
        if partly:  # it is of all ranks as one
            return None
        assert isinstance(value, torch.Tensor)  # what is seen is one tensor
        seen, value = [guess.seen], [value]
    elif isinstance(value, torch.Tensor):
        if value.numel() != traced.expected.numel():
            return None
        value = value.reshape(traced.expected.shape)
        if traced.summed:  # what a rank's summand must be is not known, the sum is
            seen, value = [traced.full], [value]
        elif traced.agreed and not partly:  # one stands for all
            seen, value = seen[:1], [value]
        else:
            value = place.at(place.target).shards(value)
    if partly:
        right = place.at(place.target)
        value = [
            v if r in place.wrong else own
            for r, (v, own) in enumerate(zip(value, right.shards(right.right), strict=True))
        ]
    if len(value) != len(seen) or any(v.numel() != s.numel() for v, s in zip(value, seen, strict=True)):
        return None
    guessed = [v.to(torch.float64).reshape(s.shape) for v, s in zip(value, seen, strict=True)]
    return _stacked([s.to(torch.float64) for s in seen]), _stacked(guessed)


def _stacked(shards: list[torch.Tensor]) -> torch.Tensor:
    """The tensors of all ranks along a new dimension 0; unequal ones in a row, as if of one rank."""
    if len({shard.shape for shard in shards}) == 1:
        return torch.stack(shards)
    return torch.cat([shard.flatten() for shard in shards])[None]


def _rounded(tried: Tried) -> torch.Tensor | None:
    """The same guess made of rounded values: a mistake may carry rounding further than the right code does."""
    sides = _sides_again(tried, replace(tried.place, rounded=True))
    return sides[1] if sides else None


def _has_residues(tried: Tried) -> bool | None:
    """Whether the guess, made in exact arithmetic, has the residues that the ranks have; None where that says nothing.

    It says nothing where residues of the guess are unknown, or where those of a tensor before this one are not equal.
    """
    place = numbered(tried.place)
    with place.arithmetic.computing():
        sides = _sides_again(tried, place)
    same = sides and place.arithmetic.same(*sides)
    return same if same or place.proved else None


def _sides_again(tried: Tried, place: Site) -> tuple[torch.Tensor, torch.Tensor] | None:
    """What is seen and what is guessed, made again of another site's values."""
    remake = tried.guess.remake
    try:
        if remake:
            guess: Guess | None = tried.guess._replace(value=remake(place))
        else:
            guess = next(islice(tried.signature.guess(place), tried.number, None), None)
    except _inapplicable(place):
        return None
    return _sides(place, guess, partly=tried.partly) if guess else None


def _mismatch(place: Site, count: int) -> float:
    """The norm of the errors of as many ranks as are compared; of summands, that of their sum."""
    traced = place.traced
    if traced.agreed:
        return sqrt(count) * (traced.shards[0].to(torch.float64) - traced.expected).norm().item()
    if traced.summed:
        return (traced.full - traced.expected).norm().item()
    pairs = zip(traced.shards, place.shards(traced.expected), strict=True)
    return torch.stack([(shard.to(torch.float64) - right).norm() for shard, right in pairs]).norm().item()


def _gates(place: Site, actual: torch.Tensor, guessed: torch.Tensor, rounded: torch.Tensor | None) -> tuple[Gate, ...]:
    """The clean error's limits, with the guess in the oracle's place."""
    traced, evidence = place.traced, place.evidence

    def between(one: torch.Tensor, other: torch.Tensor) -> Distance:
        if getattr(traced.placement, "dim", -1) == -2:  # whole heads as features
            one, other = one.flatten(-2), other.flatten(-2)
        return distance.distance(one, other)

    found, base = between(actual, guessed), between(traced.baseline, traced.expected)
    if rounded is not None and rounded.shape == guessed.shape:
        base = _wider(base, between(rounded, guessed))
    if evidence.dtype not in verdict.SIXTEEN_BITS:
        return verdict.error_gates(
            evidence.dtype, traced.name, found, base, reduction=evidence.reduction, layers=evidence.case.depth
        )
    ratio = verdict.bfloat16_gate(traced.name, found, base, sums_in(evidence))
    limit = ratio.limit * base.rel_l2
    return (Gate(kind=REL_L2, tensor=traced.name, value=found.rel_l2, limit=limit, reason=ratio.reason),)


def _wider(clean: Distance, guess: Distance) -> Distance:
    """The larger errors, those of a guess bounded: one that carries rounding further could be anything."""

    def wider(name: str) -> float:
        own: float = getattr(clean, name)
        return max(own, min(getattr(guess, name), AMPLIFIED * own))

    return replace(clean, rel_l2=wider("rel_l2"), token=wider("token"))
