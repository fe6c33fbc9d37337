"""Causes over a whole run: what explains a tensor at one degree must explain it at the others, and in each dtype.

A single degree can mislead: at 2 ranks a factor of 2 looks like one sum over ranks too many. No torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from ..results.result import Cause, Result, Status

OF_DEGREE = {  # a factor that is the degree -> the same with any factor
    "times tp": ("scaled", "summand scaled"),
    "divided by tp": ("scaled", "summand scaled"),
    "summand x tp": ("summand scaled",),
    "summand / tp": ("summand scaled",),
}


def agreed(results: Sequence[Result]) -> list[Result]:
    """The results of a run with the causes that all degrees allow; those of bfloat16 with what float32 found.

    A cause is dropped where another degree, at which the same tensor of the same case is wrong first, contradicts it:
    there it would give other numbers than were seen. What fits at every degree is told instead. Where one degree alone
    is wrong, and no other was right, a factor that equals the degree is told as the degree, and as any factor.
    """
    views = [view for result in results for view in _views(result)]
    settled = [_settled(result, views) for result in results]
    return [replace(result, as_float32=_of_float32(result, settled)) for result in settled]


def _views(result: Result) -> list[Result]:
    """The result, and for each of its further mistakes the result as if that were the first."""
    further = (
        replace(
            result,
            first_divergence=mistake.divergence,
            diagnosis=mistake.causes,
            alternatives=mistake.alternatives,
            refuted=mistake.refuted,
        )
        for mistake in result.further
    )
    return [result, *further]


def _settled(result: Result, views: Sequence[Result]) -> Result:
    first, *others = (_told(view, views) for view in _views(result))
    further = (replace(mistake, causes=told) for mistake, told in zip(result.further, others, strict=True))
    return replace(result, diagnosis=first, further=tuple(further))


def _told(result: Result, results: Iterable[Result]) -> tuple[Cause, ...]:
    if not result.diagnosis:
        return ()
    others = [other for other in results if _same(other, result) and other.tp != result.tp]
    wrong = [other for other in others if _first(other) and _first(other) == _first(result)]
    if not wrong:
        right = any(other.status.passed for other in others)
        return result.diagnosis if right else (*result.diagnosis, *_any_factor(result))
    common = set.intersection(*(_fitting(other) for other in wrong))
    fits = [cause for cause in result.diagnosis if cause.name in common]
    fits = fits or [cause for cause in result.alternatives if cause.name in common]
    refuted = {name for other in wrong for name in other.refuted}
    return tuple(fits or (cause for cause in result.diagnosis if cause.name not in refuted))


def _any_factor(result: Result) -> tuple[Cause, ...]:
    """The same causes with a factor that need not be the degree."""
    told = {cause.name for cause in result.diagnosis}
    names = {name for cause in result.diagnosis for name in OF_DEGREE.get(cause.name, ())} - told
    return tuple(cause for cause in result.alternatives if cause.name in names)


def _of_float32(result: Result, results: Iterable[Result]) -> tuple[Cause, ...]:
    """What float32 found at the same degree: with the same draw if it is the one that was told, or with another."""
    if result.diagnosis or result.dtype == "float32" or result.status not in (Status.MISMATCH, Status.DIFFERENT):
        return ()
    same = [r for r in results if r.dtype == "float32" and _case(r) == _case(result) and r.tp == result.tp]
    same.sort(key=lambda r: r.seed != result.seed)
    return next((r.diagnosis for r in same if _first(r)), ())


def _same(one: Result, other: Result) -> bool:
    return _case(one) == _case(other) and one.dtype == other.dtype


def _case(result: Result) -> tuple[str, str, int, str]:
    return result.component, result.extent, result.layer, result.fault


def _first(result: Result) -> str:
    return result.first_divergence.tensor if result.first_divergence else ""


def _fitting(result: Result) -> set[str]:
    return {cause.name for cause in (*result.diagnosis, *result.alternatives)}
