"""Signatures of an own module that reads its parameters in another way than the plan cuts them.

The reference, run with a parameter in another order, computes what ranks compute that misread their shards of it.
Weight and bias of one submodule are cut alike, and so are tried together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations

import torch

from ..parallel.placements import PlacementError, QKVHeads, Shard, StridedShard
from .own import by_owner, changed, cut_tensors, made, own_parameters, own_tensors
from .signature import Guess, Signature
from .site import Site, UnavailableError
from .watch import seen

STRIDES = (2, 3)
CUT = (Shard, StridedShard, QKVHeads)

Cut = Shard | StridedShard | QKVHeads
Order = Callable[[torch.Tensor], torch.Tensor]  # of positions along the dimension that is cut


@dataclass(frozen=True)
class Blocks:
    """Fused parts of these sizes in elements, each cut by itself: how a module reads what it splits into them."""

    sizes: tuple[int, ...]

    def join(self, shards: Sequence[torch.Tensor]) -> torch.Tensor:
        """Join all ranks' shards, each of shape (length / ranks, ...) and one dtype, part by part along dimension 0."""
        own = [shard.split([size // len(shards) for size in self.sizes]) for shard in shards]
        return torch.cat([parts[i] for i in range(len(self.sizes)) for parts in own])

    def divides(self, length: int, tp: int) -> bool:
        """Whether the parts have `length` elements together, and each of `tp` ranks as many of a part as the others."""
        return sum(self.sizes) == length and all(size % tp == 0 for size in self.sizes)

    def __str__(self) -> str:
        return f"parts of {', '.join(map(str, self.sizes))}, each cut by itself"


def read_otherwise(site: Site) -> Iterator[Guess]:
    """A submodule's parameters, cut by the plan and read as if cut otherwise; raises UnavailableError at one rank."""
    if site.tp == 1:
        raise UnavailableError
    for owner, cuts in _cut_together(site):
        said = next(iter(cuts.values()))
        if any(cut != said for cut in cuts.values()):
            continue
        dim = _dim(said)
        others: list[Cut | Blocks] = [StridedShard(dim, stride) for stride in STRIDES]
        others += [] if isinstance(said, Shard) else [Shard(dim)]
        others += [Blocks(sizes) for sizes in seen(site).parts]
        for other in others:
            yield from _guess(site, cuts, partial(_reread, site.tp, said, other), f"{owner} as {other}, cut by {said}")


def _reread(tp: int, cut: Cut, other: Cut | Blocks, positions: torch.Tensor) -> torch.Tensor:
    """Positions cut along dimension 0 by one placement and joined by another."""
    shards = [_along_0(cut).shard(positions, rank, tp) for rank in range(tp)]
    if tp * len(shards[0]) != len(positions) or (isinstance(other, Blocks) and not other.divides(len(positions), tp)):
        return positions
    return (other if isinstance(other, Blocks) else _along_0(other)).join(shards)


def _dim(cut: Cut) -> int:
    return 0 if isinstance(cut, QKVHeads) else cut.dim


def _along_0(cut: Cut) -> Cut:
    if isinstance(cut, QKVHeads):
        return cut
    return StridedShard(0, cut.stride) if isinstance(cut, StridedShard) else Shard(0, cut.unit)


def exchanged(site: Site) -> Iterator[Guess]:
    """Two things that are fused in a rank's part of the parameters of a submodule, in each other's place."""
    orders: dict[str, Order] = {
        "the second half of {owner} as its first": lambda i: i.unflatten(0, (2, -1)).flip(0).flatten(),
        "every pair of {owner} the other way round": lambda i: i.unflatten(0, (-1, 2)).flip(1).flatten(),
        "{owner} as pairs, which holds halves": lambda i: i.unflatten(0, (-1, 2)).T.flatten(),
        "{owner} as halves, which holds pairs": lambda i: i.unflatten(0, (2, -1)).T.flatten(),
    }
    for sizes in seen(site).parts:
        for a, b in combinations(range(len(sizes)), 2):
            if sizes[a] == sizes[b] and len(sizes) > 2:  # of two, they are halves
                text = f"parts {a + 1} and {b + 1} of {{owner}}, {sizes[a]} long, in each other's place"
                orders[text] = partial(_parts_exchanged, sizes, a, b)
    for owner, cuts in _cut_together(site):
        cut = next(iter(cuts.values()))
        for text, order in orders.items():
            yield from _guess(site, cuts, partial(_within_ranks, site.tp, cut, order), text.format(owner=owner))


def _within_ranks(tp: int, cut: Cut, order: Order, positions: torch.Tensor) -> torch.Tensor:
    """Positions of which each rank's are in another order."""
    moved = positions.clone()
    for rank in range(tp):
        own = _along_0(cut).shard(positions, rank, tp)
        moved[own] = own[order(torch.arange(len(own)))]
    return moved


def _parts_exchanged(sizes: tuple[int, ...], a: int, b: int, positions: torch.Tensor) -> torch.Tensor:
    """With two of a rank's parts exchanged, which are as large in proportion as these."""
    share = sum(sizes) / len(positions)
    own = [int(size / share) for size in sizes]
    if sum(own) != len(positions):
        return positions
    parts = list(positions.split(own))
    parts[a], parts[b] = parts[b], parts[a]
    return torch.cat(parts)


def gathered_in_turn(site: Site) -> Iterator[Guess]:
    """What ranks compute of their part of a projection, gathered along a new last dimension and then read as one.

    Raises:
        UnavailableError: at one rank.
    """
    if site.tp == 1:
        raise UnavailableError
    for owner, cuts in _cut_together(site):
        order = lambda i: i.unflatten(0, (site.tp, -1)).T.flatten()  # noqa: E731
        yield from _guess(site, cuts, order, f"what ranks compute of {owner} is")


def _cut_together(site: Site) -> list[tuple[str, dict[str, Cut]]]:
    """What is cut along a dimension: all of a submodule, and each by itself; and how to call them.

    Also what the plan does not cut though the reference splits it: ranks may cut it themselves.
    """
    tensors = own_tensors(site)
    cut: dict[str, Cut] = {name: p for name, p in cut_tensors(site).items() if isinstance(p, CUT)}
    fused = {sum(sizes) for sizes in seen(site).parts}
    for name, tensor in tensors.items():
        if name not in cut_tensors(site) and tensor.ndim and len(tensor) in fused:
            cut[name] = Shard(0)
    together = list(by_owner(cut).items())
    return together + [(name, {name: p}) for name, p in cut.items() if {name: p} not in [own for _, own in together]]


def _guess(site: Site, cuts: dict[str, Cut], order: Order, detail: str) -> Iterator[Guess]:
    """What the reference gives with the parameters in that order, unless they stay as they are or do not divide."""
    moved: dict[str, tuple[int, torch.Tensor]] = {}
    for name, cut in cuts.items():
        positions = torch.arange(own_tensors(site)[name].shape[_dim(cut)])
        try:
            moved[name] = _dim(cut), order(positions)
        except (PlacementError, RuntimeError):  # an odd number has no halves
            return
        if torch.equal(moved[name][1], positions):
            return
    how = changed(lambda tensors: {name: tensors[name].index_select(*at) for name, at in moved.items()})
    yield from made(site, how, detail)


def of_another(site: Site) -> Iterator[Guess]:
    """Two submodules, or two parameters, of the same form: one in the place of the other, or both."""
    tensors = own_parameters(site)
    owned = by_owner(tensors)
    forms = {owner: {name.removeprefix(owner): x.shape for name, x in own.items()} for owner, own in owned.items()}
    raw = {name: x.shape for name, x in tensors.items() if "." not in name}
    for one, other in combinations(owned, 2):
        if forms[one] == forms[other] or (one in raw and other in raw and raw[one] == raw[other]):
            there = {name: other + name.removeprefix(one) for name in owned[one]}
            back = {name: one + name.removeprefix(other) for name in owned[other]}
            for sources, text in (
                (there | back, f"{one} and {other} in each other's place"),
                (there, f"{other} in the place of {one}, too"),
                (back, f"{one} in the place of {other}, too"),
            ):
                yield from made(site, changed(partial(_taken, sources=sources)), text)


def _taken(tensors: Mapping[str, torch.Tensor], sources: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """By name, the tensor that it is taken for."""
    return {name: tensors[source] for name, source in sources.items()}


CUTS = (
    Signature(name="cut otherwise", sentence="the module reads {detail}", on=("output",), guess=read_otherwise),
    Signature(name="fused parts exchanged", sentence="the module reads {detail}", on=("output",), guess=exchanged),
    Signature(
        name="gathered elsewhere",
        sentence="{detail} gathered element by element in turn, instead of one rank's after the other's",
        on=("output",),
        guess=gathered_in_turn,
    ),
    Signature(name="parameters exchanged", sentence="the module has {detail}", on=("output",), guess=of_another),
)
