"""The mesh of a Case, and its placements along axes resolved into placements over all ranks of a degree."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from ..config.options import AXES
from ..errors import UnknownNameError, UsageError, doing
from ..parallel.mesh import ONE_AXIS, check_sizes
from ..parallel.on_mesh import on_mesh
from ..parallel.placements import Placement, Replicate

Axes = Mapping[str, int]  # and their sizes
OF_EACH = "input_placements"  # a field that has one for each
NAMED = ("plan", "taps", "state")  # fields of a Case that place what they name
FIELDS = (*NAMED, "output", OF_EACH)
DEGREES = (1, 8, 32)  # at which a mesh is asked for the names of its axes


def mesh_axes(mesh: Axes | Callable[..., Axes] | None, tp: int, name: str) -> dict[str, int]:
    """The axes of a Case's mesh at a degree of `tp` ranks; `name` is the Case's.

    Raises:
        UsageError: what `mesh` is or returns is no mapping from names to sizes.
        MeshError: the sizes do not multiply to `tp`.
    """
    axes = _asked(mesh, tp, name)
    check_sizes(axes, tp, f"the mesh of {name}")
    return axes


def _asked(mesh: Axes | Callable[..., Axes] | None, tp: int, name: str) -> dict[str, int]:
    if mesh is None:
        return {ONE_AXIS: tp}
    axes: Any = mesh
    if callable(mesh):
        with doing(f"mesh of {name}, called with {tp},"):
            axes = mesh(tp)
    named = isinstance(axes, Mapping) and axes and all(isinstance(axis, str) for axis in axes)
    if not named or not all(isinstance(size, int) and not isinstance(size, bool) for size in axes.values()):
        raise UsageError(
            f'mesh of {name} is {axes!r:.80}; axes and their sizes are needed, for example {{"tp": {tp}}}.'
        )
    for axis, size in axes.items():
        if size < 1:
            raise UsageError(f"mesh of {name} has {size} ranks along {axis} at degree {tp}; at least 1 is needed.")
    return dict(axes)


def is_placed(value: object) -> bool:
    """Whether a value is a placement, or a mapping from axes to placements."""
    each = value.values() if isinstance(value, Mapping) else [value]
    return all(isinstance(placement, Placement) for placement in each)


def with_asked(
    mesh: Axes | Callable[..., Axes] | None, asked: Mapping[str, int], name: str
) -> Axes | Callable[..., Axes] | None:
    """A Case's mesh that has the ranks along some axes that were asked for, as its keyword arguments.

    Raises:
        UsageError: the mesh does not take one that was asked for, or needs one that was not.
    """
    takes = inspect.signature(mesh).parameters if callable(mesh) else {}
    for axis, size in asked.items():
        if axis not in takes:
            raise UsageError(
                f"--{axis} is {size}, and the mesh of {name} does not take it: let it be a function with an argument "
                f"{axis}, (degree, {axis}) -> axes, or leave --{axis} out."
            )
    for axis in AXES:
        if axis in takes and axis not in asked and takes[axis].default is inspect.Parameter.empty:
            raise UsageError(f"the mesh of {name} takes {axis}, which --{axis} gives: add it.")
    return partial(mesh, **asked) if callable(mesh) and asked else mesh


def axis_names(mesh: Axes | Callable[..., Axes] | None, name: str) -> tuple[str, ...]:
    """The axes of a Case's mesh, which are the same at every degree; it may not have one of a single rank.

    Raises:
        UsageError: as `mesh_axes`; what a function raises at every degree passes.
    """
    failure: Exception | None = None
    for tp in DEGREES if callable(mesh) else DEGREES[:1]:
        try:
            axes = mesh(tp) if callable(mesh) else mesh or {ONE_AXIS: tp}
            if isinstance(axes, Mapping):
                return tuple(axes)
        except Exception as error:
            failure = failure or error
    if failure:
        raise failure
    raise UsageError(f"mesh of {name} is {mesh!r:.80}; a mapping from axes to their sizes is needed.")


def resolved(fields: Mapping[str, Any], axes: Axes, name: str) -> dict[str, Any]:
    """The fields of a Case that place something, with one placement over all ranks for each along axes.

    Args:
        fields: their values, by name.
        axes: of the mesh.
        name: the Case's.

    Raises:
        UsageError: a placement along an axis that the mesh does not have, along one twice, or along none that is named
            where there are several.
    """
    at = _Axes(axes, name)
    found: dict[str, Any] = {}
    for field, value in fields.items():
        if isinstance(value, tuple):
            found[field] = tuple(at.placed(each, f"{field} {i}") for i, each in enumerate(value))
        elif field in NAMED or (isinstance(value, Mapping) and not at.are_axes(value)):
            found[field] = {key: at.placed(each, f"{field} of {key}") for key, each in value.items()}
        elif field == OF_EACH:
            raise UsageError(f"{field} of {name} is {value}; a tuple of one for each input is needed, as ({value},).")
        else:
            found[field] = at.placed(value, field)
    return found


class _Axes:
    """The axes of the mesh of a Case called `name`."""

    def __init__(self, axes: Axes, name: str) -> None:
        self.axes, self.name = axes, name

    def are_axes(self, value: Mapping[Any, Any]) -> bool:
        """Whether a mapping is one from axes, and not from the paths of tensors."""
        return bool(value) and all(isinstance(key, tuple) or key in self.axes for key in value)

    def placed(self, value: Placement | Mapping[Any, Placement], what: str) -> Placement:
        """One placement over all ranks."""
        if isinstance(value, Mapping):
            return on_mesh(self.axes, dict(self._along(value, what)))
        if len(self.axes) > 1 and not isinstance(value, Replicate):
            every = ", ".join(map(repr, self.axes))
            raise UsageError(
                f"{what} of {self.name} is placed as {value}, and its mesh has the axes {', '.join(self.axes)}: say "
                f"along which, as {{{[*self.axes][-1]!r}: {value}}}, or {{({every}): {value}}} for all ranks."
            )
        return value

    def _along(self, value: Mapping[Any, Placement], what: str) -> Iterator[tuple[tuple[str, ...], Placement]]:
        seen: list[str] = []
        for key, placement in value.items():
            own = key if isinstance(key, tuple) else (key,)
            for axis in own:
                if axis not in self.axes:
                    raise UnknownNameError(f"axis in {what} of {self.name}", axis, self.axes)
                if axis in seen:
                    raise UsageError(f"{what} of {self.name} is placed twice along {axis}: leave one out.")
                seen.append(axis)
            yield own, placement
