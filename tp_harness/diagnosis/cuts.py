"""Signatures of an own module's parameters that are read otherwise than they are cut: the reference, run with them so.

What ranks compute from shards that they take for others is what the reference computes from a parameter in another
order. Weight and bias of one submodule are cut alike, and so are tried together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TypeVar

import torch

from ..oracle import run_with
from ..placements import PlacementError, Shard, StridedShard
from .signature import Guess, Signature
from .site import Site, UnavailableError, is_known

MOST_ELEMENTS = 1 << 22  # of the reference: each guess is a forward of it
STRIDES = (2, 3)

T = TypeVar("T")
Cut = Shard | StridedShard
Order = Callable[[torch.Tensor], torch.Tensor]  # of positions along the dimension that is cut


def read_otherwise(site: Site) -> Iterator[Guess]:
    """The parameters of a submodule, cut by the plan and read as if cut in another way."""
    for owner, cuts in _cut_together(site).items():
        said = next(iter(cuts.values()))
        others: list[Cut] = [StridedShard(said.dim, stride) for stride in STRIDES]
        others += [Shard(said.dim)] if isinstance(said, StridedShard) else []
        for other in others:
            yield from _guess(site, cuts, partial(_reread, site.tp, said, other), f"{owner} as {other}, cut by {said}")


def _reread(tp: int, cut: Cut, other: Cut, positions: torch.Tensor) -> torch.Tensor:
    """Positions cut along dimension 0 by one placement and joined by another."""
    return _along_0(other).join([_along_0(cut).shard(positions, rank, tp) for rank in range(tp)])


def _along_0(cut: Cut) -> Cut:
    return StridedShard(0, cut.stride) if isinstance(cut, StridedShard) else Shard(0, cut.unit)


def exchanged(site: Site) -> Iterator[Guess]:
    """Two things that are fused in the parameters of a submodule, in each other's place."""
    orders: dict[str, Order] = {
        "the second half of {owner} as its first": lambda i: i.unflatten(0, (2, -1)).flip(0).flatten(),
        "every pair of {owner} the other way round": lambda i: i.unflatten(0, (-1, 2)).flip(1).flatten(),
        "{owner} as pairs, which holds halves": lambda i: i.unflatten(0, (2, -1)).T.flatten(),
        "{owner} as halves, which holds pairs": lambda i: i.unflatten(0, (-1, 2)).T.flatten(),
    }
    for owner, cuts in _cut_together(site).items():
        for text, order in orders.items():
            yield from _guess(site, cuts, order, text.format(owner=owner))


def _cut_together(site: Site) -> dict[str, dict[str, Cut]]:
    """The parameters that the plan cuts, by submodule."""
    own_parameters(site)  # raises where these signatures do not apply
    plan = site.evidence.case.plan
    return by_owner({name: cut for name, cut in plan.items() if isinstance(cut, (Shard, StridedShard))})


def by_owner(named: Mapping[str, T]) -> dict[str, dict[str, T]]:
    """What is said of parameters, by the submodule that has them, or the parameter if that is the module itself."""
    owned: dict[str, dict[str, T]] = {}
    for name, value in named.items():
        owned.setdefault(name.rpartition(".")[0] or name, {})[name] = value
    return owned


def _guess(site: Site, cuts: dict[str, Cut], order: Order, detail: str) -> Iterator[Guess]:
    """What the reference gives with the parameters in that order, unless they stay as they are or do not divide."""
    parameters, changed = own_parameters(site), {}
    for name, cut in cuts.items():
        positions = torch.arange(parameters[name].shape[cut.dim])
        try:
            moved = order(positions)
        except (PlacementError, RuntimeError):  # an odd number has no halves
            return
        if torch.equal(moved, positions):
            return
        changed[name] = parameters[name].index_select(cut.dim, moved)
    yield rerun(site, changed, detail)


def own_parameters(site: Site) -> dict[str, torch.Tensor]:
    """The parameters of a module of the user's, by name.

    Raises:
        UnavailableError: a module of gpt-oss, which has signatures of its own, or one that is large.
    """
    reference = site.tapped.reference
    if is_known(reference) or sum(p.numel() for p in reference.parameters()) > MOST_ELEMENTS:
        raise UnavailableError
    return {name: parameter.detach() for name, parameter in reference.named_parameters(remove_duplicate=False)}


def rerun(site: Site, changed: Mapping[str, torch.Tensor], detail: str) -> Guess:
    """What the reference gives with some parameters changed."""
    run = run_with(site.tapped, site.evidence.case, site.evidence.dtype if site.rounded else "float64", changed)
    name = site.traced.name
    return Guess(run.taps[name] if name in run.taps else run.outputs[int(name.rpartition(".")[2])], detail)


CUTS = (
    Signature(name="cut otherwise", sentence="the module reads {detail}", on=("output",), guess=read_otherwise),
    Signature(name="fused parts exchanged", sentence="the module reads {detail}", on=("output",), guess=exchanged),
)
