"""An own module seen from a signature: its tensors, what the plan cuts of them, and the reference run with changes.

A mistake on the ranks often gives what the reference gives with something in it changed: a parameter in another order,
a part of it zero, the output of a submodule several times as large.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TypeVar

import torch

from ..arithmetic.casts import computable
from ..arithmetic.floats import Floats, nominal
from ..libraries.torch_private import without_modes
from ..parallel.placement import built_in
from ..parallel.placements import Placement, PlacementError, Replicate, shape_only
from ..prepare.changed_run import run_with
from .signature import Guess, Value
from .site import Site, UnavailableError, is_known

MOST_ELEMENTS = 1 << 22  # of the reference: each guess is a forward of it
MOST_WORK = 1 << 31  # elements of all these forwards together
RUNS = 4000  # of a small reference
SAME = 1e-9  # relative: two float64 results of the same sums in another order

T = TypeVar("T")
Change = Callable[[torch.Tensor], torch.Tensor]


def own_tensors(site: Site) -> dict[str, torch.Tensor]:
    """The parameters and buffers of a user's module by name, any shape and dtype; a shared one under each of its names.

    Those in a dtype that torch does not compute with, float8 and uint16 say, are given in float64 or int64.

    Raises:
        UnavailableError: a family's module, which has signatures of its own, or more than MOST_ELEMENTS elements.
    """
    reference = site.tapped.reference
    tensors = dict(reference.named_parameters(remove_duplicate=False)) | dict(reference.named_buffers())
    if is_known(reference) or sum(x.numel() for x in tensors.values()) > MOST_ELEMENTS:
        raise UnavailableError
    return {name: computable(tensor.detach()) for name, tensor in tensors.items()}


def own_parameters(site: Site) -> dict[str, torch.Tensor]:
    """Those of `own_tensors` that are floating-point, of any shape with at least one dimension and element."""
    return {name: x for name, x in own_tensors(site).items() if x.is_floating_point() and x.ndim and x.numel()}


def cut_tensors(site: Site) -> dict[str, Placement]:
    """The placements of the tensors that the plan cuts, in the order of the reference.

    Left out are those that ranks have unequal parts of, or padded ones: no guess knows where these begin.
    """
    tensors, plan = own_tensors(site), site.evidence.placements
    placed = {name: plan[name] for name in tensors if name in plan and tensors[name].ndim and tensors[name].numel()}
    return {
        name: placement
        for name, placement in placed.items()
        if not isinstance(placement, Replicate) and _equal(placement, tensors[name], site.tp)
    }


def _equal(placement: Placement, full: torch.Tensor, tp: int) -> bool:
    """Whether all ranks have as many elements of the tensor, and no padding."""
    if not built_in(placement):
        return True
    ranks = range(tp)
    sizes = {placement.shard(shape_only(full.shape), rank, tp).numel() for rank in ranks}
    return len(sizes) == 1 and placement.padding(full.shape, 0, tp) is None


def by_owner(named: Mapping[str, T]) -> dict[str, dict[str, T]]:
    """The values by name of the submodule that has them; a parameter of the module itself is its own owner."""
    owned: dict[str, dict[str, T]] = {}
    for name, value in named.items():
        owned.setdefault(name.rpartition(".")[0] or name, {})[name] = value
    return owned


def groups(named: Mapping[str, T]) -> list[dict[str, T]]:
    """What may be treated alike: all that a submodule has, each by itself, and all together."""
    latest = dict(reversed(list(named.items())))  # the last parameter is nearest to the sum
    found = [*({name: value} for name, value in latest.items()), *by_owner(latest).values(), dict(named)]
    return [group for i, group in enumerate(found) if group and group not in found[:i]]


def held(site: Site, name: str, placement: Placement) -> list[torch.Tensor]:
    """For each rank, the flat positions of the elements that it holds of a tensor: int64, in the shape of its shard.

    Raises:
        UnavailableError: the placement cannot cut the positions.
    """
    key = f"held {name} {placement}"
    if key not in site.memo:
        shape = own_tensors(site)[name].shape
        positions = torch.arange(shape.numel()).view(shape)
        try:
            site.memo[key] = [placement.shard(positions, rank, site.tp) for rank in range(site.tp)]
        except Exception as error:  # a user's placement may do anything; what it raises was said before the ranks ran
            raise UnavailableError from error
    found: list[torch.Tensor] = site.memo[key]
    return found


def only(tensor: torch.Tensor, positions: Sequence[torch.Tensor]) -> torch.Tensor:
    """The tensor, of any shape and dtype, with zeros outside of these flat positions (int64, any shape)."""
    kept = torch.zeros(tensor.numel(), dtype=torch.bool)
    for some in positions:
        kept[some.flatten()] = True
    return torch.where(kept.view(tensor.shape), tensor, torch.zeros_like(tensor))


def classes(site: Site) -> list[list[int]]:
    """Groups of ranks that hold the same bits; in a tensor that is cut, each rank by itself."""
    if not isinstance(site.traced.placement, Replicate):
        return [[rank] for rank in range(site.tp)]
    found: dict[str, list[int]] = {}
    for rank, bits in enumerate(site.traced.digests):
        found.setdefault(bits, []).append(rank)
    return list(found.values())


def rerun(
    site: Site,
    changed: Mapping[str, torch.Tensor] | None = None,
    outputs: Mapping[str, Change] | None = None,
    watched: AbstractContextManager[object] | None = None,
    given: Callable[[str, torch.Tensor], object] | None = None,
) -> torch.Tensor:
    """The tensor in question, full and in float64, as the reference gives it with something changed.

    Args:
        changed: other values of parameters and buffers by name, each in the shape of what it replaces.
        outputs: what becomes of the output of a submodule, by the submodule's name.
        watched: entered while the reference runs.
        given: told the name and the first input of every submodule that is called.

    Raises:
        UnavailableError: the reference cannot be run so, or has been run as often as RUNS and MOST_WORK allow.
    """
    size = max(1, sum(x.numel() for x in own_tensors(site).values()))
    runs = site.memo.setdefault("runs", [0])
    runs[0] += 1
    if runs[0] > min(RUNS, MOST_WORK // size):
        raise UnavailableError
    arithmetic = Floats(nominal(site.evidence.dtype)) if site.rounded else site.arithmetic
    try:
        with without_modes():  # the run enters its own
            run = run_with(
                site.tapped,
                site.evidence.case,
                arithmetic,
                changed or {},
                tied=site.evidence.expectation.tied,
                outputs=outputs,
                watched=watched,
                given=given,
            )
    except Exception as error:  # a user's module may check what it is given
        raise UnavailableError from error
    name = site.traced.name
    found = run.taps[name] if name in run.taps else run.outputs[name]
    return arithmetic.joined(found.to(torch.float64), run.residues.get(name, ()))


def changed(change: Callable[[dict[str, torch.Tensor]], Mapping[str, torch.Tensor]]) -> Callable[[Site], torch.Tensor]:
    """(site) -> what the reference gives with other values of some of its tensors (`own_tensors`), as `rerun` gives it.

    Args:
        change: (tensors) -> other values by name, each in the shape of what it replaces.
    """
    return lambda site: rerun(site, change(own_tensors(site)))


def made(site: Site, how: Callable[[Site], Value], detail: str = "") -> Iterator[Guess]:
    """The guess that `how` makes, if it can; `how` can make it again of rounded values."""
    try:
        yield Guess(how(site), detail, remake=how)
    except (UnavailableError, PlacementError):
        return


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two float64 results, of any shapes, have one shape and differ by rounding at most."""
    return a.shape == b.shape and bool((a - b).norm() <= SAME * torch.maximum(a.norm(), b.norm()))
