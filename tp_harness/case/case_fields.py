"""The checks of a Case's fields when it is made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ..errors import UnknownNameError, UsageError
from ..results.collective import KINDS
from .calls import Same
from .mesh_axes import is_placed
from .naming.rename import check_rename
from .routing import Router


def check_fields(case: Any) -> None:
    """Refuse fields of the wrong type of a new Case, which would otherwise fail in a rank, or falsify the verdict.

    Raises:
        UsageError: a field of the wrong type, or both inputs and calls.
    """
    needed = ("reference", "sharded", "in_dtype", "edit", "inputs" if case.calls is None else "calls")
    if case.calls is not None and case.inputs is not None:
        raise UsageError("a Case has inputs and calls; leave one out: inputs are those of one call.")
    functions = [name for name in needed if not callable(getattr(case, name))]
    if case.collectives is not None and not callable(case.collectives):
        functions.append("collectives")
    for name in functions:
        raise UsageError(f"{name} of a Case is {getattr(case, name)!r:.60}; a function is needed.")
    for name in ("reference", "sharded"):
        if isinstance(getattr(case, name), nn.Module):  # a module is callable too, but returns no module
            cls = type(getattr(case, name)).__name__
            raise UsageError(
                f"{name} of a Case is a module, an instance of {cls}; what makes one is needed: the class {cls} "
                "itself, or a function without arguments that returns a new module."
            )
    for name, kind in (
        ("name", str),
        ("prefix", str),
        ("plan", Mapping),
        ("taps", Mapping),
        ("state", Mapping),
        ("routing", tuple),
        ("unscheduled", tuple),
    ):
        if not isinstance(getattr(case, name), kind):
            raise UsageError(f"{name} of a Case is {getattr(case, name)!r:.60}; a {kind.__name__} is needed.")
    for name in ("reduction", "layer", "depth"):
        if not isinstance(getattr(case, name), int) or getattr(case, name) < 0:
            raise UsageError(f"{name} of a Case is {getattr(case, name)!r:.60}; a whole number is needed.")
    placed: dict[str, object] = {"output": case.outputs, "input_placements": case.input_placements}
    placed |= {name: getattr(case, name) for name in ("plan", "taps", "state")}
    for name, given in placed.items():
        placements = tuple(given.values()) if isinstance(given, Mapping) else given
        wrong = [p for p in placements if not is_placed(p)] if isinstance(placements, tuple) else [placements]
        if wrong:
            raise UsageError(f"{name} of a Case holds {wrong[0]!r:.60}; placements are needed, for example Shard(0).")
    if not all(isinstance(router, (str, Router)) for router in case.routing):
        raise UsageError(f"routing of a Case is {case.routing!r:.100}; names of submodules are needed, or Routers.")
    _check_names(case)
    check_rename(case.rename)


def _check_names(case: Any) -> None:
    names = [*case.plan, *case.taps, *case.state, *case.unscheduled, case.name or None]
    keys = [key for given in (case.output, case.input_placements) if isinstance(given, Mapping) for key in given]
    names += [name for key in keys for name in (key if isinstance(key, tuple) else (key,))]  # or axes of a mesh
    if not all(isinstance(name, str) for name in names):
        raise UsageError(f"a Case has the names {names!r:.100}; strings are needed.")
    for kind in case.unscheduled:
        if kind not in KINDS:
            raise UnknownNameError(f"kind of collective in unscheduled of {case.name}", kind, KINDS)
    if case.mesh is not None and not callable(case.mesh) and not isinstance(case.mesh, Mapping):
        raise UsageError(f"mesh of a Case is {case.mesh!r:.60}; a mapping from axes to their sizes is needed.")
    if not isinstance(case.same, tuple) or not all(isinstance(each, Same) for each in case.same):
        raise UsageError(
            f'same of a Case is {case.same!r:.60}; a tuple is needed, as (Same("all", ("a", "b"), dim=1),).'
        )
