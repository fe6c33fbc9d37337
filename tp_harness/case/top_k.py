"""Top-k choices of experts: which one scores give, and how far scores must move to give another one.

Scores are (tokens, experts), larger ones are chosen. With groups (DeepSeek-V3, arXiv:2412.19437, section 2.1.2), the
best groups are kept first, and experts of the others cannot be chosen.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Groups:
    """Neighbouring experts form `count` equal groups; the `kept` best ones stay, by the sum of their `best` scores."""

    count: int = 1
    kept: int = 1
    best: int = 1


ONE_GROUP = Groups()


def top_k(scores: torch.Tensor, k: int, groups: Groups = ONE_GROUP) -> torch.Tensor:
    """The experts that the scores choose, int64 (tokens, k)."""
    if groups.count > 1:
        of_group = scores.unflatten(-1, (groups.count, -1))
        kept = of_group.topk(groups.best, dim=-1).values.sum(-1).topk(groups.kept, dim=-1).indices
        left = torch.ones(of_group.shape[:-1], dtype=torch.bool).scatter(-1, kept, value=False)
        scores = of_group.masked_fill(left[..., None], float("-inf")).flatten(-2)
    return scores.topk(k, dim=-1).indices


def in_order_of(own: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """The experts of `right`, each in the place where `own` has it; the others where `own` has experts not in `right`.

    So the weights that a router computed in the order of its own choice stay with the experts that are right.

    Args:
        own: (..., k), integers.
        right: (..., k), all of a token different.

    Returns:
        (..., k) in the dtype of `own`.
    """
    same = own[..., :, None] == right[..., None, :]
    same &= same.cumsum(-2) == 1  # of an expert that `own` has twice, the first
    free, missing = (x.to(torch.uint8).argsort(dim=-1, stable=True) for x in (same.any(-1), same.any(-2)))
    others = torch.where(same.any(-1).gather(-1, free), own.gather(-1, free), right.to(own.dtype).gather(-1, missing))
    return own.scatter(-1, free, others)


def margins(scores: torch.Tensor, chosen: torch.Tensor, groups: Groups = ONE_GROUP) -> torch.Tensor:
    """Per token, the gap between the scores that must change places to give `chosen`: 0 where they give it.

    Args:
        scores: float64 (tokens, experts); -inf is what cannot be chosen.
        chosen: (tokens, k).
        groups: of the experts.

    Returns:
        float64 (tokens,); inf where an expert is chosen twice, does not exist, or cannot be chosen.
    """
    real = ((chosen >= 0) & (chosen < scores.shape[-1])).all(-1)
    picked = torch.zeros(scores.shape, dtype=torch.bool)
    picked.scatter_(-1, chosen.clamp(0, scores.shape[-1] - 1), value=True)
    real &= picked.sum(-1) == chosen.shape[-1]
    if groups.count > 1:
        found = _margins_in_groups(scores, picked, groups)
    else:
        left_out = scores.masked_fill(picked, float("-inf")).amax(-1)
        lowest = scores.masked_fill(~picked, float("inf")).amin(-1)
        found = _difference(left_out, lowest)
    return torch.where(real, found, float("inf"))


def _margins_in_groups(scores: torch.Tensor, picked: torch.Tensor, groups: Groups) -> torch.Tensor:
    """The least margin over all sets of groups that hold what is picked.

    What is picked must be the best of the kept groups, and these the best groups, whose sums of `best` scores move that
    many times as far. Of other groups those are kept along whose best expert lies lowest, up to each bound in turn.
    """
    of_group, inside = scores.unflatten(-1, (groups.count, -1)), picked.unflatten(-1, (groups.count, -1))
    sums = of_group.topk(groups.best, dim=-1).values.sum(-1)
    held = inside.any(-1)
    lowest = scores.masked_fill(~picked, float("inf")).amin(-1, keepdim=True)
    over = _difference(of_group.masked_fill(inside, float("-inf")).amax(-1), lowest)  # (tokens, groups)
    in_held = over.masked_fill(~held, 0.0).amax(-1, keepdim=True)
    least = torch.full(scores.shape[:1], float("inf"), dtype=scores.dtype)
    for bound in torch.maximum(over, in_held).unbind(-1):
        allowed = held | (over <= bound[:, None])
        order = sums.masked_fill(~allowed, float("-inf")).masked_fill(held, float("inf"))
        kept = torch.zeros_like(held).scatter(-1, order.topk(groups.kept, dim=-1).indices, value=True)
        worst_kept = sums.masked_fill(~kept, float("inf")).amin(-1)
        best_left = sums.masked_fill(kept, float("-inf")).amax(-1)
        of_groups = _difference(best_left, worst_kept) / groups.best
        fits = (kept <= allowed).all(-1) & (held <= kept).all(-1)
        needed = torch.maximum(torch.maximum(in_held[:, 0], bound), of_groups)
        least = torch.where(fits, torch.minimum(least, needed), least)
    return least


def _difference(upper: torch.Tensor, lower: torch.Tensor) -> torch.Tensor:
    """How far one lies above another, at least 0; 0 for two equal infinities."""
    return torch.where(upper == lower, 0.0, upper - lower).clamp(min=0.0)
