"""All that one verdict rests on, gathered before anything is judged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from ..case.case import Case
from ..case.routing import Router
from ..checkpoint.checkpoint import Checkpoint
from ..parallel.dtensors import from_facts
from ..parallel.placements import Placement
from ..prepare.oracle import Expectation
from .gather import RankOutput


def as_placed(case: Case, dtype: str, ranks: Mapping[int, RankOutput]) -> Case:
    """The case with the placements of the DTensors that ranks had: of parameters it does not place, and of all taps."""
    if 0 not in ranks:
        return case
    facts = ranks[0].facts[dtype]
    taps = {name: placement for name, placement in from_facts(facts["placed"]).items() if name in case.taps}
    plan: dict[str, Placement] = {}
    for held in facts["parameters"].values():
        plan |= from_facts(held.get("placed", {}))
    return replace(case, plan=plan | dict(case.plan), taps=dict(case.taps) | taps) if plan or taps else case


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """All that a verdict rests on."""

    case: Case
    tp: int
    dtype: str
    expectation: Expectation
    ranks: Mapping[int, RankOutput]
    checkpoint: Checkpoint

    @property
    def reduction(self) -> int:
        """The length of the longest sum: what the case says, or else the largest dimension of a parameter."""
        names = self.ranks[0].facts[self.dtype]["parameters"]
        sizes = [n for name in names for n in self.checkpoint.shape(self.case.prefix + name)]
        return self.case.reduction or max(sizes, default=1)

    def shards(self, name: str, variant: str = "locked") -> list[torch.Tensor]:
        """Every rank's tensor of that name, by rank."""
        return [self.ranks[rank].tensors[f"{self.dtype}.{variant}.{name}"] for rank in sorted(self.ranks)]

    def rows(self, rank: int, router: Router) -> list[int] | slice:
        """Which tokens a rank's router has: all, unless the first input's tokens are shared out."""
        rows: list[int] | None = self.ranks[rank].facts[self.dtype].get("rows", {}).get(router.chosen)
        return slice(None) if rows is None else rows

    def shared_out(self, router: Router) -> bool:
        """Whether each rank's router has some of the tokens."""
        return any(isinstance(self.rows(rank, router), list) for rank in self.ranks)

    def of_router(self, router: Router, tap: str) -> torch.Tensor:
        """What all ranks' routers gave, by token; the first rank's where several have the token."""
        if not self.shared_out(router):
            return self.shards(tap)[0]
        right = self.expectation.oracle.routing[tap]
        whole = torch.zeros(right.shape, dtype=self.shards(tap)[0].dtype)
        for rank, own in reversed(list(enumerate(self.shards(tap)))):
            whole[self.rows(rank, router)] = own
        return whole
