"""The evidence for one verdict, gathered before anything is judged."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from ..case.case import UNSAID, Case
from ..case.naming.rename import Renaming
from ..case.naming.sources import AsItIs
from ..case.placed import output_placements, taps_of
from ..case.routing import Router
from ..checkpoint.checkpoint import Checkpoint
from ..parallel.on_rank import OnRank
from ..parallel.placements import KVHeads, Placement, Shard, shape_only
from ..parallel.same_bits import bits_of
from ..prepare.expectation import Expectation
from ..prepare.material import Material
from ..ranks.job import Task
from ..ranks.rank_report import DtypeRun, TensorKey, Variant
from ..results.result import Worst
from ..results.tensor_names import is_state
from . import distance
from .gather import Joined, RankOutput, join


def unpadded(placement: Placement, shape: Sequence[int], shards: list[torch.Tensor]) -> list[torch.Tensor]:
    """One shard per rank, any dtype, of a tensor of that full shape, with zeros where they are padding.

    Shards of another shape than the placement gives are left as they are.
    """
    size = len(shards)
    masks = [placement.padding(shape, rank, size) for rank in range(size)]
    forms = (
        [placement.shard(shape_only(shape), rank, size).shape for rank in range(size)]
        if any(mask is not None for mask in masks)
        else []
    )
    found = list(shards)
    for rank, (form, mask) in enumerate(zip(forms, masks, strict=False)):
        if mask is not None and found[rank].shape == form:
            found[rank] = found[rank].clone()
            bits_of(found[rank])[mask.expand(form)] = 0
    return found


def _output_of(name: str) -> str:
    """The name of an output, of itself, its residues or what stands beside it."""
    return re.split("[%@]", name, maxsplit=1)[0]


def _as_run(case: Case, calls: Iterable[str], dtype: str, ranks: Mapping[int, RankOutput]) -> Case:
    """The case with its taps in each call by name, and with the placements of the ranks' DTensors: of parameters that
    it does not place, and of all taps.
    """
    case = replace(case, taps=taps_of(case, calls))
    if 0 not in ranks:
        return case
    run = ranks[0].report.runs[dtype]
    taps = {name: placed.placement for name, placed in run.placed.items() if name in case.taps}
    plan = {name: held.placed.placement for name, held in run.parameters.items() if held.placed}
    return replace(case, plan=plan | dict(case.plan), taps=dict(case.taps) | taps) if plan or taps else case


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """All that a verdict on a task at one degree (`tp` ranks) and dtype rests on; `ranks` is by rank."""

    case: Case
    tp: int
    dtype: str
    expectation: Expectation
    ranks: Mapping[int, RankOutput]
    checkpoint: Checkpoint

    @staticmethod
    def of(material: Material, task: Task, tp: int, dtype: str, ranks: Mapping[int, RankOutput]) -> Evidence:
        """The evidence for a task of the material on `tp` ranks; the verdict does not see the task's fault."""
        expectation = material.expectation(task)
        return Evidence(
            case=_as_run(material.subject.case(task, dtype=dtype, tp=tp), expectation.calls.each, dtype, ranks),
            tp=tp,
            dtype=dtype,
            expectation=expectation,
            ranks=ranks,
            checkpoint=material.checkpoints[task.draw],
        )

    @property
    def reduction(self) -> int:
        """Elements of the longest sum: what the case says, or else the largest dimension of a parameter."""
        sizes = [n for name in self.runs[0].parameters for n in self.full_shape(name)]
        return self.case.reduction or max(sizes, default=1)

    @cached_property
    def renaming(self) -> Renaming:
        """What the parameters of the sharded module are made of."""
        return self.case.renaming(self.checkpoint.names)

    def full(self, name: str) -> torch.Tensor:
        """The full tensor, of any shape, that ranks hold shards of under that name."""
        return self.renaming.tensor(name, self.checkpoint.tensor)

    def full_shape(self, name: str) -> tuple[int, ...]:
        """Its shape."""
        return self.renaming.shape(name, self.checkpoint.shape)

    @cached_property
    def placements(self) -> dict[str, Placement]:
        """The plan by the reference's names, where a parameter is one of the reference's as it is."""
        sources = {name: self.renaming.source(name) for name in self.case.plan}
        return {own.name: self.case.plan[name] for name, own in sources.items() if isinstance(own, AsItIs)}

    @property
    def runs(self) -> dict[int, DtypeRun]:
        """By rank, its report on the run in this dtype."""
        return {rank: output.report.runs[self.dtype] for rank, output in self.ranks.items()}

    @cached_property
    def outputs(self) -> dict[str, Placement]:
        """By name, the placement of all that the reference's calls returned and left: of DTensors that the case says
        nothing of, their own.
        """
        right = self.expectation.oracle.outputs
        placed = output_placements(self.case, right)
        if self.case.output is UNSAID and 0 in self.ranks:
            read = {name: placed.placement for name, placed in self.runs[0].placed.items()}
            placed |= {name: read[name] for name in placed if name in read and not is_state(name)}
        return {name: placement.fitted(right[name].shape) for name, placement in placed.items()}

    @property
    def joined(self) -> dict[str, Joined]:
        """By name, each output of all ranks as one tensor, in the shape and dtype that they wrote."""
        return {name: join(placement, self.shards(name)) for name, placement in self.outputs.items()}

    def worst(self, name: str, full: torch.Tensor, expected: torch.Tensor) -> Worst:
        """The element of an output that is farthest off, and the first rank that has it.

        Args:
            name: of the output.
            full: the ranks' output, joined; any shape.
            expected: what it must be, of the same shape.
        """
        placement = self.outputs[name]
        dim = placement.dim if isinstance(placement, (KVHeads, Shard)) else None
        found = distance.worst_element(name, full, expected, self.tp, dim=dim)
        if not isinstance(placement, Shard):
            return distance.held_first(found, placement, expected.shape)
        ends = (placement.bounds(expected, rank, self.tp)[1] for rank in range(self.tp))  # they may be unequal
        return replace(found, rank=sum(end <= found.index[placement.dim % expected.ndim] for end in ends))

    def shards(self, name: str, variant: Variant = "locked") -> list[torch.Tensor]:
        """Every rank's tensor of that name, in the order of ranks, in the shape and dtype that the rank wrote.

        The padding of an output is zero.

        Raises:
            KeyError: a rank left no such tensor.
        """
        key, only, output = TensorKey(self.dtype, variant, name), self.only_on(name), _output_of(name)
        held = {rank: self.ranks[rank].tensors[key] for rank in self.ranks if only in (None, rank)}
        if any(str(key) in run.pairs for run in self.runs.values()):
            held = {rank: torch.view_as_complex(x) for rank, x in held.items()}
        shards = [held[rank] if rank in held else held[only or 0].new_empty(0) for rank in sorted(self.ranks)]
        if output not in self.outputs:
            return shards
        return unpadded(self.outputs[output], self.expectation.oracle.outputs[output].shape, shards)

    def without(self, name: str, variant: Variant = "locked") -> list[int]:
        """The ranks that left no tensor of that name."""
        key = TensorKey(self.dtype, variant, name)
        only = self.only_on(name)
        return [rank for rank, left in self.ranks.items() if key not in left.tensors and only in (None, rank)]

    def only_on(self, name: str) -> int | None:
        """The rank that alone returns a tensor; None where all do."""
        placement = self.outputs.get(_output_of(name))
        return placement.owner(self.tp) if isinstance(placement, OnRank) else None

    def rows(self, rank: int, router: Router) -> list[int] | slice:
        """The token indices that a rank's router has: all, unless the first input is cut along its tokens."""
        rows = self.ranks[rank].report.runs[self.dtype].rows.get(router.chosen)
        return slice(None) if rows is None else list(rows)

    def shared_out(self, router: Router) -> bool:
        """Whether a rank's router has only some of the tokens."""
        return any(isinstance(self.rows(rank, router), list) for rank in self.ranks)

    def of_router(self, router: Router, tap: str) -> torch.Tensor:
        """The ranks' tensors of a router's tap joined by token; the first rank's where several have the token.

        (tokens, experts) or (tokens, k) as the tap, in the ranks' dtype.
        """
        if not self.shared_out(router):
            return self.shards(tap)[0]
        right = self.expectation.oracle.routing[tap]
        whole = torch.zeros(right.shape, dtype=self.shards(tap)[0].dtype)
        for rank, own in reversed(list(enumerate(self.shards(tap)))):
            whole[self.rows(rank, router)] = own
        return whole
