"""Router flips, tokens whose top-k choice is not the oracle's, and the run with the module's own routing."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..case.routing import Router
from ..case.taps import same_choice
from ..case.top_k import margins
from ..results.result import Flip
from . import distance, verdict
from .evidence import Evidence
from .gates import sums_in
from .gather import join


def router_flips(evidence: Evidence) -> tuple[Flip, ...]:
    """Every token whose own choice is another set of experts than the oracle's, on the rank with the widest margin.

    Margin and limit of a Flip are in units of the router's scores.
    """
    return tuple(flip for router in evidence.case.routers for flip in _flips(evidence, router))


def _flips(evidence: Evidence, router: Router) -> Iterator[Flip]:
    oracle = evidence.expectation.oracle
    tap, groups = oracle.rules[router.name]
    right, scores = oracle.routing[router.chosen], oracle.routing[tap].to(torch.float64)
    own, margin = right.clone(), torch.zeros(len(right), dtype=torch.float64)
    for rank, shard in enumerate(evidence.shards(router.chosen)):
        tokens = torch.arange(len(right))[evidence.rows(rank, router)]
        other = ~same_choice(shard, right[tokens])
        tokens, choice = tokens[other], shard[other]
        wider = margins(scores[tokens], choice, groups)
        farther = same_choice(own[tokens], right[tokens]) | (wider > margin[tokens])
        own[tokens[farther]], margin[tokens[farther]] = choice[farther], wider[farther]
    flipped = (~same_choice(own, right)).nonzero()[:, 0]
    if not len(flipped):
        return
    limits = _limits(evidence, router, own)
    for token in flipped.tolist():
        yield Flip(
            layer=router.name or evidence.case.name,
            token=token,
            margin=margin[token].item(),
            limit=limits[token].item(),
            chosen=tuple(sorted(set(own[token].tolist()))),
            expected=tuple(sorted(right[token].tolist())),
        )


def _limits(evidence: Evidence, router: Router, own: torch.Tensor) -> torch.Tensor:
    """Per token, the widest margin that rounding can overturn: float64 (tokens,).

    The error of a score by rounding is measured on the single-core reference, relative to the score or, where that is
    larger, to the usual least chosen score: one huge score, as padding has it, does not count for the others.
    """
    expected = evidence.expectation
    tap = expected.oracle.rules[router.name][0]
    oracle, single = expected.oracle.routing, expected.baselines[evidence.dtype].routing
    scores, rounded = (tensors.get(tap, oracle[tap]).to(torch.float64) for tensors in (oracle, single))
    known = scores.isfinite() & rounded.isfinite()
    size = scores.masked_fill(~scores.isfinite(), 0.0).abs()
    usual = _border(scores, oracle[router.chosen]).median()
    relative = (rounded - scores).abs()[known] / torch.maximum(size, usual)[known]
    error = relative.max().item() if relative.numel() and usual > 0 else 0.0
    at_stake = size.gather(-1, torch.cat((own.clamp(0, size.shape[-1] - 1), oracle[router.chosen]), -1))
    moved = _exchanged(own, oracle[router.chosen])
    largest = torch.maximum(at_stake.masked_fill(~moved, 0.0).amax(-1), usual)
    dtype = evidence.dtype if evidence.case.on_meta else "float32"  # a user's router may compute its scores in it
    return verdict.flip_limit(error, evidence.reduction, sums_in(evidence), dtype) * largest


def _border(scores: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Per token, the absolute value of the least score that is chosen."""
    return scores.gather(-1, chosen).amin(-1).nan_to_num(posinf=0.0, neginf=0.0).abs()


def _exchanged(own: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Which experts of the own and of the right choice, concatenated, are not in the other: bool (tokens, 2 k)."""
    gained = ~(own[..., None] == right[..., None, :]).any(-1)
    lost = ~(right[..., None] == own[..., None, :]).any(-1)
    return torch.cat((gained, lost), -1)


def unlocked_statement(evidence: Evidence, flips: tuple[Flip, ...]) -> str:
    """One sentence on the flips and, if there was one, on the run with the module's own routing; not judged."""
    if not evidence.case.routing:
        return ""
    if not flips:
        return "every token chose the oracle's experts: an unlocked run would be the locked one"
    tokens = evidence.expectation.oracle.routing[evidence.case.routers[0].chosen].shape[0]
    widest = max(flips, key=lambda flip: flip.margin)
    layers = sorted({flip.layer for flip in flips})
    statement = (
        f"{len(flips)} of {tokens * len(evidence.case.routing)} choices flip (in {', '.join(layers)}; "
        f"widest margin {widest.margin:.1e} of {widest.limit:.1e})"
    )
    name, placement = next(iter(evidence.outputs.items()))
    if evidence.without(name, "unlocked"):
        return statement
    full = join(placement, evidence.shards(name, "unlocked")).full
    error = distance.distance(full, evidence.expectation.oracle.outputs[name]).rel_l2
    return f"{statement}; unlocked, rel_L2 becomes {error:.1e}"
