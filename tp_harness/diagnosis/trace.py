"""Tensors of all ranks beside what they must be, in order of execution: the taps of a case, then its outputs.

Not covered: a tap that only one side has (a kernel hides it), or that is empty, is passed over.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np
import torch

from ..case.taps import same_choice
from ..config.dtypes import EXACT
from ..judge.evidence import Evidence, unpadded
from ..judge.gather import join
from ..parallel.on_mesh import added
from ..parallel.placements import Partial, Placement, PlacementError, Replicate
from ..prepare.oracle import Tapped
from ..ranks.grafts import right_shard
from ..ranks.rank_files import digest
from ..ranks.rank_report import TensorKey, Variant, modulo
from ..results.tensor_names import call_of, without_call


class Residues(NamedTuple):
    """A tensor modulo a prime, int32: every rank's `shards`, and what it must be, in full."""

    prime: int
    shards: tuple[torch.Tensor, ...]
    expected: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class Traced:
    """One tensor at every rank, and what it must be.

    `shards` are the ranks' by rank; `expected` is the float64 oracle's and `baseline` the single-core reference's in
    the dtype under test, both full. Of a run in exact arithmetic, these are float64, and `residues` decide. `bits` are
    digests of the shards, where these are told apart by others' bits than their own.
    """

    name: str
    placement: Placement
    shards: tuple[torch.Tensor, ...]
    expected: torch.Tensor
    baseline: torch.Tensor
    residues: tuple[Residues, ...] = ()
    bits: tuple[str, ...] = ()

    @cached_property
    def digests(self) -> tuple[str, ...]:
        """By rank, what tells shards with other bits apart."""
        return self.bits or tuple(map(digest, self.shards))

    def differs(self, rank: int) -> torch.Tensor:
        """Where a rank's part is known to have other residues than it must: bool, in the shape of its shard; of a sum,
        where that has.
        """
        found = torch.zeros(self.shard_of(self.expected, rank).shape, dtype=torch.bool)
        for own in self.residues:
            seen = torch.stack(own.shards).sum(0).remainder(own.prime) if self.summed else own.shards[rank]
            found |= seen != self.shard_of(own.expected, rank)
        return found & ~self.unknown(rank)

    def unknown(self, rank: int) -> torch.Tensor:
        """Where its residues are not known, or those that they must be: bool, in the same shape."""
        found = torch.zeros(self.shard_of(self.expected, rank).shape, dtype=torch.bool)
        for own in self.residues:
            for seen in own.shards if self.summed else own.shards[rank : rank + 1]:
                found |= (seen < 0) | (self.shard_of(own.expected, rank) < 0)
        return found

    @property
    def tp(self) -> int:
        """Number of ranks."""
        return len(self.shards)

    @property
    def leaf(self) -> str:
        """The last part of the name: `heads` of `block.0.attn.heads`."""
        return self.name.rpartition(".")[2]

    @property
    def summed(self) -> bool:
        """Whether ranks hold summands: then only their sum is known, and it belongs to all of them."""
        return isinstance(self.placement, Partial)

    @cached_property
    def agreed(self) -> bool:
        """Whether all ranks must hold the same, and do."""
        same = isinstance(self.placement, Replicate) and len(set(self.digests)) == 1
        return same and len(self.shards) > 1

    @cached_property
    def full(self) -> torch.Tensor:
        """All ranks' tensors as one, in their dtype and in the shape of `expected`.

        Summands are added in float64; of replicas, the first copy stands for all.

        Raises:
            PlacementError: the placement cannot join them.
        """
        if self.summed:
            return torch.stack([shard.to(torch.float64) for shard in self.shards]).sum(dim=0)
        with _placing(self.placement, self.name):
            return join(self.placement, list(self.shards)).full

    def shard_of(self, full: torch.Tensor, rank: int) -> torch.Tensor:
        """A rank's part of a full tensor of any dtype, in its shard's shape; of a sum over ranks, the whole.

        Raises:
            PlacementError: the placement cannot cut it.
        """
        if self.summed:
            return full
        with _placing(self.placement, self.name):
            return self.placement.shard(full, rank, self.tp)

    def whole_index(self, rank: int, index: int) -> tuple[int, ...]:
        """Index in the full tensor of the element whose flat index in the rank's shard is `index`."""
        positions = torch.arange(self.expected.numel()).view(self.expected.shape)
        flat = int(self.shard_of(positions, rank).flatten()[index])
        return tuple(int(i) for i in np.unravel_index(flat, tuple(self.expected.shape)))


@contextmanager
def _placing(placement: Placement, name: str) -> Iterator[None]:
    """What a user's placement raises, as a PlacementError with the tensor's name."""
    try:
        yield
    except PlacementError:
        raise
    except Exception as error:
        raise PlacementError(f"{placement} of {name} raised {type(error).__name__}: {error}") from error


def trace(evidence: Evidence, tapped: Tapped) -> Iterator[Traced]:
    """Every tensor that both sides have, call by call, in order; what a call leaves and returns comes last.

    Raises:
        ShapeError: on reaching a tensor of another shape than a shard of the reference's.
        PlacementError: on reaching one whose placement cannot cut it.
    """
    for name in in_order(tapped):
        if name in evidence.outputs:
            runs = tapped.oracle.outputs[name], tapped.baseline.outputs[name]
            of_output = evidence.outputs[name]
            traced = _traced(name, of_output, evidence.shards(name), *runs)
            yield replace(traced, residues=_residues(evidence, tapped, traced, of_output, "locked"))
            continue
        placement, empty = _placement(evidence, name), tapped.oracle.taps[name].numel() == 0
        if placement and not empty and not evidence.without(name, "tap"):
            runs = tapped.oracle.taps[name], tapped.baseline.taps[name]
            traced = _traced(name, placement, evidence.shards(name, "tap"), *runs)
            yield replace(traced, residues=_residues(evidence, tapped, traced, placement, "tap"))


def in_order(tapped: Tapped) -> list[str]:
    """The names of all taps and outputs, call by call: taps as they were recorded, then what it left and returned."""
    run = tapped.oracle
    calls = dict.fromkeys(map(call_of, run.outputs))
    return [name for call in calls for name in (*run.taps, *run.outputs) if call_of(name) == call]


def _residues(
    evidence: Evidence, tapped: Tapped, traced: Traced, placement: Placement, variant: Variant
) -> tuple[Residues, ...]:
    """A tensor's residues modulo each prime; () where it has none. `placement` is that of what ranks wrote."""
    right = tapped.baseline.residues.get(traced.name, ())
    primes = evidence.expectation.primes if right else ()
    found = []
    for number, (prime, expected) in enumerate(zip(primes, right[: len(primes)], strict=True)):  # after them, exponents
        name = modulo(traced.name, number)
        if not evidence.without(name, variant):
            shards = zip(evidence.shards(name, variant), traced.shards, strict=True)
            formed = [own.reshape(shadow.shape) for own, shadow in shards]
            _, formed = added(placement, formed, partial(_sum_of_residues, prime=prime))
            found.append(Residues(prime, tuple(unpadded(traced.placement, expected.shape, formed)), expected))
    return tuple(found)


def _sum_of_residues(parts: Sequence[torch.Tensor], prime: int) -> torch.Tensor:
    """Negative, as each part is, where one is not known."""
    stacked = torch.stack(list(parts))
    return torch.where((stacked < 0).any(0), -1, stacked.sum(0).remainder(prime))


def _placement(evidence: Evidence, name: str) -> Placement | None:
    """Of a tap; what a router shows is on all ranks, or (None) some of its tokens on each."""
    of = next((router for router in evidence.case.routers if without_call(name) in router.sources), None)
    found = evidence.case.taps.get(name)
    return found or (None if of is None or evidence.shared_out(of) else Replicate())


def with_grafts(evidence: Evidence, tapped: Tapped, grafts: Iterable[str]) -> Evidence:
    """The evidence with what the ranks went on with in the place of their own values of some taps."""
    put = {}
    for name in grafts:
        placement = _placement(evidence, name)
        for part, full in tapped.oracle.written(name).items():
            if placement and not evidence.without(part, "tap"):
                key = TensorKey(evidence.dtype, "tap", part)
                for rank, own in enumerate(evidence.shards(part, "tap")):
                    right = right_shard(placement, full, rank, evidence.tp)
                    if right.numel() == own.numel():
                        put[rank, key] = right.reshape(own.shape).to(own.dtype)
    ranks = {
        rank: replace(output, tensors={key: put.get((rank, key), x) for key, x in output.tensors.items()})
        for rank, output in evidence.ranks.items()
    }
    return replace(evidence, ranks=ranks)


def graftable(evidence: Evidence, tapped: Tapped) -> tuple[str, ...]:
    """The taps in whose place every rank can be given a right value, in order: all but empty ones and some choices."""
    choices = {router.chosen for router in evidence.case.routers}
    taps = (name for name in tapped.oracle.taps if without_call(name) in choices)
    other = [name for name in taps if not _locked(evidence, tapped, name)]
    names = (name for name in tapped.oracle.taps if name not in other and tapped.oracle.taps[name].numel())
    return tuple(name for name in names if _placement(evidence, name) and not evidence.without(name, "tap"))


def _locked(evidence: Evidence, tapped: Tapped, choice: str) -> bool:
    """Whether a router's lock is to put its choice right: in exact arithmetic, if it is the choice of that run, too.

    In floats, routers are locked in every run.
    """
    right, lock = tapped.oracle.taps.get(choice), evidence.expectation.locks[without_call(choice)].chosen
    if evidence.dtype != EXACT or right is None or right.numel() != lock.numel():
        return False
    return bool(same_choice(right.reshape(lock.shape), lock).all())


class ShapeError(Exception):
    """A rank's tensor that is no shard of the reference's, whatever its token dimensions are called."""

    def __init__(self, name: str, rank: int, actual: torch.Size, expected: torch.Size) -> None:
        self.name, self.rank = name, rank
        super().__init__(f"shape {list(actual)} instead of {list(expected)}")


def _traced(
    name: str, placement: Placement, shards: list[torch.Tensor], expected: torch.Tensor, baseline: torch.Tensor
) -> Traced:
    """Tokens of a shard may be flattened: (tokens, ...) where the reference has (batch, seq, ...)."""
    formed = []
    for rank, shard in enumerate(shards):
        with _placing(placement, name):
            form = placement.shard(expected, rank, len(shards)).shape
        if shard.numel() != form.numel() or shard.shape[-1:] != form[-1:]:
            raise ShapeError(name, rank, shard.shape, form)
        formed.append(shard.reshape(form))
    placement, formed = added(placement, formed, lambda parts: torch.stack(list(parts)).to(torch.float64).sum(0))
    placement = placement.fitted(expected.shape)
    formed = unpadded(placement, expected.shape, formed)
    if expected.dtype == torch.bool:  # which has no difference
        expected, baseline = expected.to(torch.int64), baseline.to(torch.int64)
    return Traced(name=name, placement=placement, shards=tuple(formed), expected=expected, baseline=baseline)
