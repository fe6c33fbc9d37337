"""The places for the control fault of a user's case: parameters and buffers of every rank, or else the inputs.

If the plan cuts a parameter, the cut parameters are the only places: a run in which no fault of a sharded parameter
shows says nothing about the sharding, whatever faults of other tensors show.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from random import Random

import torch

from ..case.case import Case
from ..case.placed import input_placements
from ..checkpoint.checkpoint import TensorSpec
from ..faults.fault import EVERY
from ..parallel.placements import Placement, Replicate
from ..results.tensor_names import said

Place = tuple[str, int]  # a parameter, a buffer or "input 0", and its rank, or EVERY for a replica on all ranks


@dataclass(frozen=True, kw_only=True)
class Places:
    """The places of a user's case.

    Args:
        placed: by degree (ranks), the placement of every parameter and buffer.
        fixed: the buffers' names.
        inputs: the placement of each input, by the name that a sentence gives it.
        flat: a sentence for each input whose elements are all equal in every draw.
        blind: every input is flat, so that no permutation of tokens or features could show.
    """

    placed: Mapping[int, Mapping[str, Placement]] = field(default_factory=dict)
    fixed: frozenset[str] = frozenset()
    inputs: Mapping[str, Placement] = field(default_factory=dict)
    flat: tuple[str, ...] = ()
    blind: bool = False

    @property
    def notes(self) -> tuple[str, ...]:
        """A note on each flat input; none where all inputs are flat, because the verdict says so."""
        return () if self.blind else tuple(f"{said}: an exchange of its elements is unseen" for said in self.flat)

    def sharded(self, tp: int) -> tuple[str, ...]:
        """The names of the parameters that are cut over `tp` ranks."""
        return tuple(
            name
            for name, placement in self.placed.get(tp, {}).items()
            if name not in self.fixed and not isinstance(placement, Replicate)
        )

    def drawn(self, tp: int, source: Random) -> list[Place]:
        """All places at a degree of `tp` ranks, in a random order: each name once before any comes again."""
        placed = self.placed.get(tp, {})
        cut = self.sharded(tp)
        own = {name: placed[name] for name in cut} if cut else placed
        return [*_in_turn(own, tp, source), *_in_turn({} if cut else self.inputs, tp, source)]


def _in_turn(placed: Mapping[str, Placement], tp: int, source: Random) -> Iterator[Place]:
    names = source.sample(list(placed), len(placed))
    ranks = [[EVERY] if isinstance(placed[name], Replicate) else source.sample(range(tp), tp) for name in names]
    for turn in zip_longest(*ranks):
        yield from ((name, rank) for name, rank in zip(names, turn, strict=True) if rank is not None)


def places_of(
    case: Case,
    specs: Sequence[TensorSpec],
    placed: Mapping[int, Mapping[str, Placement]],
    draws: Sequence[Mapping[str, torch.Tensor]],
) -> Places:
    """The places of a user's case with the tensors `specs`, placed as `placed` says at each degree.

    `draws` are the full inputs of each draw by name, at least one; any shape and dtype.
    """
    flat, blind = flat_inputs(draws)
    return Places(
        placed=placed,
        fixed=frozenset(spec.name.removeprefix(case.prefix) for spec in specs if spec.fixed is not None),
        inputs={said(name): placement for name, placement in input_placements(case, draws[0]).items()},
        flat=flat,
        blind=blind,
    )


def flat_inputs(draws: Sequence[Mapping[str, torch.Tensor]]) -> tuple[tuple[str, ...], bool]:
    """`Places.flat` and `Places.blind` for the full inputs (any shape and dtype) of each draw, by name."""
    flat, seen = [], 0
    for name in draws[0]:
        whole = [x for x in (of_draw[name] for of_draw in draws) if x.numel() > 1]
        seen += bool(whole)
        if whole and all(bool((x == x.flatten()[0]).all()) for x in whole):
            values = sorted({f"{x.flatten()[0].item():g}" for x in whole})
            flat.append(f"{said(name)} is {', '.join(values[:3])} everywhere")
    return tuple(flat), bool(flat) and len(flat) == seen
