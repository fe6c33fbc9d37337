"""Observe the calls by which a module ranks numbers, and replace their choice where asked.

A library's router has no submodule that its scores or its choice pass through. But it calls torch.topk or a similar
function, which is observed, whatever form the router has.

Not covered: a choice made without such a call, or inside a compiled function or a kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch.overrides import TorchFunctionMode

from .top_k import ONE_GROUP, Groups

_SORTED = ("input", "dim", "descending")
_REDUCED = ("input", "dim", "keepdim")
_ARGUMENTS: dict[str, tuple[str, ...]] = {  # in order
    "topk": ("input", "k", "dim", "largest"),
    "sort": _SORTED,
    "argsort": _SORTED,
    "max": _REDUCED,
    "amax": _REDUCED,
    "argmax": _REDUCED,
}
_LAST = {"topk": -1, "sort": -1, "argsort": -1}  # the dimension that is ranked where none is given
_ASCENDING = {"sort": "descending", "argsort": "descending", "topk": "largest"}  # False reverses the order


class Ranked(NamedTuple):
    """One call along the last dimension.

    `scores` (..., n), of which larger ones are better; `values` and `indices` (..., k) of the k best, None where the
    call does not return them.
    """

    scores: torch.Tensor
    values: torch.Tensor | None
    indices: torch.Tensor | None


class RankingCalls(TorchFunctionMode):
    """Calls `see` with each call in the `with` block; indices (..., k) that it returns replace the call's own."""

    def __init__(self, see: Callable[[Ranked], torch.Tensor | None]) -> None:
        super().__init__()
        self._see = see

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the call, and let `see` look at what it ranked."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name not in _ARGUMENTS:
            return result
        given = dict(zip(_ARGUMENTS[name], args, strict=False)) | kwargs
        x, dim = given.get("input"), given.get("dim", _LAST.get(name))
        if not isinstance(x, torch.Tensor) or type(dim) is not int or dim not in (-1, x.ndim - 1):
            return result
        thin = name in ("max", "amax", "argmax") and not given.get("keepdim")
        parts = _parts(name, result)
        values, indices = (p[..., None] if thin and p is not None else p for p in parts)
        best_first = given.get(_ASCENDING[name], name == "topk") if name in _ASCENDING else True
        other = self._see(Ranked(x if best_first else -x, values, indices))
        if other is None or indices is None:
            return result
        own = x.gather(-1, other)
        pair = (p.squeeze(-1) if thin else p for p in (own, other))
        return other.view(result.shape) if isinstance(result, torch.Tensor) else type(result)(tuple(pair))


def _parts(name: str, result: Any) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Values and indices, as far as the call returns them."""
    if isinstance(result, torch.Tensor):
        return (result, None) if name == "amax" else (None, result)
    return result[0], result[1]


def scores_of(calls: Sequence[Ranked], chosen: torch.Tensor) -> tuple[torch.Tensor, Groups] | None:
    """The scores (tokens, experts), before any group was left out, and the groups by which a choice was made.

    Args:
        calls: in order.
        chosen: (tokens, k).

    Returns:
        None where no call made that choice.
    """
    at = _deciding(calls, chosen)
    if at is None:
        return None
    scores = calls[at].scores.flatten(0, -2)
    for i in reversed(range(at)):
        found = _grouped(calls[:i], calls[i], *scores.shape)
        if found:
            return found
    return scores, ONE_GROUP


def last_choice(calls: Sequence[Ranked]) -> torch.Tensor | None:
    """The indices (tokens, k) of the last call that chose among experts, which are more than groups; None if none."""
    made = [call for call in calls if call.indices is not None and call.indices.shape[-1] < call.scores.shape[-1]]
    most = max((call.scores.shape[-1] for call in made), default=0)
    chosen = [call.indices for call in made if call.scores.shape[-1] == most]
    return None if not chosen or chosen[-1] is None else chosen[-1].reshape(-1, chosen[-1].shape[-1])


def beginning_with(chosen: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """A whole order of experts (..., n) with the chosen ones (..., k) moved to its front."""
    last = (order[..., None] == chosen[..., None, :]).any(-1)
    rest = order.gather(-1, (~last).to(torch.uint8).argsort(dim=-1, descending=True, stable=True))
    return torch.cat((chosen, rest[..., : order.shape[-1] - chosen.shape[-1]]), dim=-1)


def _deciding(calls: Sequence[Ranked], chosen: torch.Tensor) -> int | None:
    """The index of the last call whose best are the chosen ones."""
    tokens, k = chosen.shape
    for at in reversed(range(len(calls))):
        scores, _, indices = calls[at]
        if indices is not None and scores.shape[-1] > 1 and indices.shape[-1] >= k:
            best = indices.flatten(0, -2)[:, :k] if indices.ndim > 1 else indices[None, :k]
            if len(best) == tokens and torch.equal(best.sort(-1).values, chosen.sort(-1).values):
                return at
    return None


def _grouped(before: Sequence[Ranked], choice: Ranked, tokens: int, experts: int) -> tuple[torch.Tensor, Groups] | None:
    """The scores and the groups, if `choice` is one of groups, by their experts' best scores of a call before."""
    count = choice.scores.shape[-1]
    if choice.indices is None or experts % count or not 1 < count < experts or choice.scores.numel() != tokens * count:
        return None
    of_group = choice.scores.reshape(tokens, count)
    for inner in before:
        fits = inner.scores.numel() == tokens * experts and inner.scores.shape[-1] == experts // count
        if fits and inner.values is not None and torch.equal(inner.values.reshape(tokens, count, -1).sum(-1), of_group):
            groups = Groups(count, choice.indices.shape[-1], inner.values.shape[-1])
            return inner.scores.reshape(tokens, experts), groups
    return None
