"""A rank's module checked against its Case before it loads anything: its names, its plan and its submodules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import nn

from ..errors import UnknownNameError, UsageError, described, doing
from ..libraries.torch_private import NO_PROCESS_GROUP, stand_in_groups
from ..parallel.dtensors import agree, is_dtensor, placement_of
from ..parallel.dtensors import local as local_data
from ..parallel.group import Group, current_group, use_group
from ..parallel.mesh import mesh_of, use_mesh
from ..parallel.placements import Placement
from ..results.result import Collective
from .case import Case
from .naming.proposed_names import proposed
from .naming.rename import Renaming
from .rehearsal import UnrehearsedError, of_torch_distributed, told_by_others
from .state_dict import weights_of
from .tried_placements import PlanError, local_placement

OF_LOCAL = (
    "the ranks of backend local have no torch.distributed group, which the sharded module asks for: let it use "
    "tp_harness.current_group(), or run it with --backend gloo"
)


def check_plan(
    case: Case, shapes: Mapping[str, Sequence[int]], tp: int, *, lingering: bool = False
) -> tuple[nn.Module, dict[str, Placement]]:
    """Build a rank's module at this degree and place every parameter; call it inside `stand_in_group`.

    Args:
        case: the case at degree `tp`.
        shapes: full name -> full shape of every tensor of the reference.
        tp: the degree.
        lingering: a module of another degree has made groups in this process, which the case may still hold.

    Returns:
        The module, and the placement of each of its parameters and buffers.

    Raises:
        PlanError: a parameter without placement, with another local shape, or unknown to the reference.
        PlacementError: a parameter that does not divide.
        UnrehearsedError: it failed in torch.distributed, after it used results of other ranks (there are none here), or
            with groups of another degree. It may succeed in the ranks, which check the same.
    """
    _check_collectives(case, tp)
    local: Mapping[str, torch.Tensor] = {}
    with use_mesh(mesh_of(case.axes(tp), current_group())), told_by_others() as calls:
        try:
            with doing(f"sharded of {case.name}, called without arguments at tp {tp},"):
                module = case.make(case.sharded)
            if not isinstance(module, nn.Module):
                raise PlanError(f"sharded of {case.name} makes a {type(module).__name__}; a torch.nn.Module is needed.")
            local = weights_of(module, f"the sharded module of {case.name}")
            return module, _placements(case, local, shapes, tp)
        except Exception as error:
            declared = isinstance(error, UsageError) and any(map(is_dtensor, local.values()))  # whatever others hold
            if tp > 1 and not declared and (lingering or calls or of_torch_distributed(error)):
                raise UnrehearsedError(described(error, whole=False).rstrip(".")) from error
            raise


def _placements(
    case: Case, local: Mapping[str, torch.Tensor], shapes: Mapping[str, Sequence[int]], tp: int
) -> dict[str, Placement]:
    renaming = check_names(case, local, shapes, tp)
    case = replace(case, plan=planned(case, local, tp))
    return {
        name: local_placement(case, name, renaming.shape(name, shapes.__getitem__), local_data(tensor).shape, tp)
        for name, tensor in local.items()
    }


def check_names(
    case: Case, local: Mapping[str, torch.Tensor], shapes: Mapping[str, Sequence[int]], size: int
) -> Renaming:
    """Check that plan, sharded module and reference name the same parameters, or that `rename` says which are.

    Args:
        case: whose plan, `rename` and prefix.
        local: the state of a rank's module, by name; any shapes.
        shapes: by full name, the shapes of the reference's.
        size: the number of ranks.

    Returns:
        What the module's parameters are made of.

    Raises:
        PlanError: a name of the plan or of `rename` that the module lacks, or one of the module's that the reference
            lacks.
        RenameError: `rename` makes a parameter of tensors that do not fit.
    """
    renaming = case.renaming(shapes)
    for field, names in (("plan", case.plan), ("rename", renaming.unused(local))):
        for name in names:
            if field == "rename" or name not in local:
                places = "places" if field == "plan" else "makes"
                raise PlanError(f"the {field} of {case.name} {places} {name}, which the sharded module does not have.")
    for name in local:
        if not set(renaming.keys(name)) <= set(shapes):
            raise PlanError(
                f"the sharded module has a parameter {name} that the reference does not have; "
                f"the reference has {', '.join(shapes)}{proposed(renaming, local, shapes, size)}.",
                of=case.name,
            )
    return renaming


def planned(case: Case, local: Mapping[str, torch.Tensor], size: int) -> dict[str, Placement]:
    """The plan, with the placement of every DTensor among `local` (any shapes) that it does not name.

    Raises:
        PlanError: the plan gives a DTensor another placement than it has.
        DTensorError: a DTensor that cannot be read.
    """
    plan = dict(case.plan)
    for name, tensor in local.items():
        read = placement_of(f"{name} of {case.name}", tensor)
        if read is not None and not agree(plan.setdefault(name, read), read, tensor.ndim, size):
            raise PlanError(
                f"the plan of {case.name} places {name} as {plan[name]}, but the sharded module holds a DTensor "
                f"that is placed as {read}: correct one of them, or leave {name} out of the plan."
            )
    return plan


def check_submodules(case: Case, side: str, module: nn.Module) -> None:
    """Check that a module has every submodule that `taps` and `routing` of the case name.

    Raises:
        UnknownNameError: a name of `taps` or `routing` that it lacks.
    """
    names = dict(module.named_modules())  # "" is the module itself
    routers = [source for router in case.routers for tap, (source, _) in router.sources.items() if tap != router.scores]
    for field, wanted in (("taps", [*case.taps]), ("routing", routers)):
        for name in wanted:
            if name not in names:
                raise UnknownNameError(
                    f"submodule of {case.name}'s {side}, named by {field},", name, filter(None, names)
                )


def _check_collectives(case: Case, tp: int) -> None:
    """Refuse planned calls that are not Collectives: they would differ from every recorded call."""
    planned = () if case.collectives is None else case.planned(tp)
    if not isinstance(planned, (tuple, list)) or not all(isinstance(call, Collective) for call in planned):
        raise PlanError(
            f"collectives of {case.name} returns {planned!r:.80} at tp {tp}; a tuple of Collective is needed, as "
            "tp_harness.collective(kind, group_size, shape, dtype) makes them."
        )


@contextmanager
def stand_in_group(tp: int, *, real: bool) -> Iterator[None]:
    """Let a module be built as rank 0 of `tp` without any other rank.

    With `real`, torch.distributed itself answers as if initialised (its "fake" backend), for modules that ask
    it directly and make groups of their own; collectives then give nothing useful, and few constructors need any.

    Raises:
        PlanError: without `real`, for a module that asks torch.distributed.
    """
    with use_group(Group(0, tp)):
        if not real or torch.distributed.is_initialized():  # under torchrun the group of this degree exists already
            with _asking_refused():
                yield
            return
        with stand_in_groups(tp):
            yield


@contextmanager
def _asking_refused() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError) as error:
        if NO_PROCESS_GROUP not in str(error):
            raise
        raise PlanError(f"{OF_LOCAL}.") from error
