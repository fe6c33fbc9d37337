"""Routers: tokens whose top-k choice is not the oracle's, and the run with the module's own routing."""

from __future__ import annotations

import torch

from . import compare, verdict
from .evidence import Evidence
from .gather import join
from .result import Flip
from .taps import CHOSEN, LOGITS, same_choice, tap_name


def router_flips(evidence: Evidence) -> tuple[Flip, ...]:
    """Every token whose own choice, on any rank, is another set of experts than the oracle's."""
    flips = []
    for router in evidence.case.routing:
        logits, chosen = tap_name(router, LOGITS), tap_name(router, CHOSEN)
        oracle, lock = (evidence.expectation.oracle.routing[name] for name in (logits, chosen))
        baseline = evidence.expectation.baselines[evidence.dtype].routing[logits]
        error = (baseline.to(torch.float64) - oracle).abs().max().item()
        limit = verdict.flip_limit(error, oracle.abs().max().item(), evidence.reduction)
        flipped = torch.stack([~same_choice(own, lock) for own in evidence.shards(chosen)])
        for token in flipped.any(dim=0).nonzero()[:, 0].tolist():
            rank = int(flipped[:, token].nonzero()[0])
            own = set(evidence.shards(chosen)[rank][token].tolist())
            right = set(lock[token].tolist())
            lost, gained = sorted(right - own), sorted(own - right)
            margin = float("inf")  # an expert chosen twice has nothing in the place of what it lost
            if lost and gained:
                margin = (oracle[token, lost].max() - oracle[token, gained].min()).item()
            flips.append(
                Flip(
                    layer=router or evidence.case.name,
                    token=token,
                    margin=margin,
                    limit=limit,
                    chosen=tuple(sorted(own)),
                    expected=tuple(sorted(right)),
                )
            )
    return tuple(flips)


def unlocked_statement(evidence: Evidence, flips: tuple[Flip, ...]) -> str:
    """One sentence on flips and, where it was made, the run with the module's own routing; it is not judged."""
    if not evidence.case.routing:
        return ""
    if not flips:
        return "every token chose the oracle's experts: an unlocked run would be the locked one"
    tokens = evidence.expectation.oracle.routing[tap_name(evidence.case.routing[0], CHOSEN)].shape[0]
    widest = max(flips, key=lambda flip: flip.margin)
    layers = sorted({flip.layer for flip in flips})
    statement = (
        f"{len(flips)} of {tokens * len(evidence.case.routing)} choices flip (in {', '.join(layers)}; "
        f"widest margin {widest.margin:.1e} of {widest.limit:.1e})"
    )
    if f"{evidence.dtype}.unlocked.output.0" not in evidence.ranks[0].tensors:
        return statement
    full = join(evidence.case.outputs[0], evidence.shards("output.0", "unlocked")).full
    error = compare.distance(full, evidence.expectation.oracle.outputs[0], 1).rel_l2
    return f"{statement}; unlocked, rel_L2 becomes {error:.1e}"
