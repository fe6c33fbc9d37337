"""The place of a mismatch, seen from a signature: what went in, what came out of every rank, and the parameters.

All values are float64. What is not known here raises `UnavailableError`, and the signature that asked does not apply.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from ..arithmetic.exact import Exact
from ..arithmetic.floats import Floats, nominal
from ..config.dtypes import EXACT
from ..judge.evidence import Evidence
from ..models import knowledge
from ..parallel.placements import Placement, Replicate
from ..prepare.oracle import ReferenceRun, Tapped
from ..results.tensor_names import call_of, is_result, of_call, without_call
from .trace import Traced

FLOAT64 = Floats(torch.float64)
ROUNDING = 2.0**-50  # of some sums in float64
UNKNOWN = ("", "output")


class UnavailableError(Exception):
    """A tensor, parameter or module that this place does not have."""


@dataclass(frozen=True, kw_only=True)
class Site:
    """Where to explain: `traced` is the first wrong tensor, leaf `target` of module `owner`.

    A signature speaks of `leaf`: the same, unless tensors just before the wrong one were not tapped, in which a mistake
    may lie, too. `wrong` are the ranks that hold it wrong. `rounded`: the values before it are the single-core
    reference's in the dtype under test instead of the oracle's, so that a signature shows how far rounding moves what
    its mistake makes. `arithmetic` is that of what signatures compute: float64 or, once the tensors here carry numbers,
    exact; `proved`: the residues of all tensors before it are equal. `memo` holds what several signatures need and is
    costly to compute.
    """

    evidence: Evidence
    tapped: Tapped
    traced: Traced
    owner: str
    leaf: str
    target: str
    wrong: tuple[int, ...]
    rounded: bool = False
    arithmetic: Floats | Exact = FLOAT64
    proved: bool = True
    memo: dict[str, Any] = field(default_factory=dict)

    @property
    def tp(self) -> int:
        """Number of ranks."""
        return self.evidence.tp

    @property
    def call(self) -> str:
        """The name of the call in which the tensor is wrong."""
        return call_of(self.traced.name)

    @property
    def inputs(self) -> tuple[torch.Tensor, ...]:
        """The full inputs of that call, in order; any shape and dtype."""
        return self.tapped.inputs_of(self.call)

    @property
    def tables(self) -> torch.dtype:
        """The dtype to which a module rounds tables that it makes in float64, in the run whose values these are."""
        return nominal(EXACT) if self.evidence.dtype == EXACT else torch.float64

    @property
    def run(self) -> ReferenceRun:
        """The single-core run whose values a signature is given."""
        return self.tapped.baseline if self.rounded else self.tapped.oracle

    def at(self, leaf: str) -> Site:
        """The same wrong tensor, to be explained by a mistake at another leaf of the same module."""
        return replace(self, leaf=leaf)

    @cached_property
    def module(self) -> nn.Module:
        """The reference's module that the tensor belongs to."""
        return self.tapped.reference.get_submodule(self.owner)

    def name(self, leaf: str) -> str:
        """The tap's full name, with the call."""
        return of_call(self.call, self._own(leaf))

    def _own(self, name: str) -> str:
        return f"{self.owner}.{name}" if self.owner else name

    def tap(self, leaf: str) -> torch.Tensor:
        """What the single-core run has at a tap of this module, in its full shape; float64 where it is floating-point.

        Raises:
            UnavailableError: the run has no such tap.
        """
        found = self.run.taps.get(self.name(leaf))
        if found is None:
            raise UnavailableError
        return found.to(torch.float64) if found.is_floating_point() else found

    def ranks(self, leaf: str) -> list[torch.Tensor]:
        """What every rank had at a tap of this module: float64, in the oracle's shape where ranks hold whole tensors.

        Raises:
            UnavailableError: a rank did not record it.
        """
        if self.evidence.without(self.name(leaf), "tap"):
            raise UnavailableError
        return [x.to(torch.float64) for x in self.evidence.shards(self.name(leaf), "tap")]

    def parameter(self, name: str) -> torch.Tensor:
        """A full parameter of this module, float64, in its own shape; raises UnavailableError where it has none."""
        found = dict(self.module.named_parameters()).get(name)
        if found is None:
            raise UnavailableError
        return found.detach().to(torch.float64)

    def placement(self, parameter: str) -> Placement:
        """The plan's placement of a parameter of this module."""
        return self.evidence.case.plan.get(self._own(parameter), Replicate())

    @property
    def right(self) -> torch.Tensor:
        """What the leaf must be, in its full shape; float64 where it is floating-point."""
        if self.leaf != self.target:
            return self.tap(self.leaf)
        return (self.traced.baseline if self.rounded else self.traced.expected).to(torch.float64)

    @property
    def clean(self) -> torch.Tensor:
        """By how much right code may be off in each element of the target: float64, in its full shape.

        It is the single core's own error, or float64's rounding, in which a single core has none.
        """
        expected = self.traced.expected.to(torch.float64)
        return torch.maximum((self.traced.baseline.to(torch.float64) - expected).abs(), ROUNDING * expected.abs())

    def shards(self, full: torch.Tensor) -> list[torch.Tensor]:
        """A full tensor of any dtype as each rank should hold it at the leaf; of a sum over ranks, the whole shape."""
        if self.leaf == self.target:
            return [self.traced.shard_of(full, rank) for rank in range(self.tp)]
        return list(self.evidence.case.taps[self.name(self.leaf)].split(full, self.tp))

    @cached_property
    def input(self) -> torch.Tensor:
        """What the module was given, in full: the residual stream before it (batch, seq, hidden), or the case's input.

        Floating-point numbers are float64; token ids stay int64.
        """
        names = [name for name in self.evidence.case.taps if call_of(name) == self.call]
        owner = of_call(self.call, self.owner)
        own = [i for i, name in enumerate(names) if name == owner or name.startswith(f"{owner}.")]
        before = names[: own[0]] if self.owner and own else []
        streams = [name for name in before if name.endswith(("residual", "embedding.total")) and name in self.run.taps]
        given = self.run.taps[streams[-1]] if streams else self.inputs[0]
        return given.to(torch.float64) if given.is_floating_point() else given

    @cached_property
    def positions(self) -> torch.Tensor:
        """The case's positions, (batch, seq) int64; raises UnavailableError where no input after the first is."""
        found = [x for x in self.inputs[1:] if not x.is_floating_point() and x.shape == self.inputs[0].shape[: x.ndim]]
        if not found:
            raise UnavailableError
        return found[-1]


def site_of(evidence: Evidence, tapped: Tapped, traced: Traced, wrong: tuple[int, ...]) -> Site:
    """The place of a tensor that these ranks (`wrong`) hold wrong.

    An output of a module that a family knows counts as the last tap of the submodule that made it.
    """
    owner, leaf = _maker(tapped.reference, without_call(traced.name))
    return Site(evidence=evidence, tapped=tapped, traced=traced, owner=owner, leaf=leaf, target=leaf, wrong=wrong)


def is_known(reference: nn.Module) -> bool:
    """Whether it is a family's module, whose taps mean what the family's signatures take them for."""
    return _maker(reference, "output.0") != UNKNOWN


def as_output(site: Site) -> Site:
    """The place as the output of an unknown module, whose taps may have any names."""
    owner, leaf = UNKNOWN
    return replace(site, owner=owner, leaf=leaf, target=leaf, memo={})


def _maker(reference: nn.Module, name: str) -> tuple[str, str]:
    """The submodule and leaf whose value a tensor is; an unknown module's output is `output`."""
    for known in knowledge():
        made: tuple[str, str] | None = known.maker(reference, name)
        if made:
            return made
    owner, _, leaf = name.rpartition(".")
    return UNKNOWN if is_result(name) else (owner, leaf)
