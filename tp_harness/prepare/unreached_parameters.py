"""The parts of a user's parameters that change no output with the given inputs: a mistake in them cannot show.

Found by changing values in float64 and comparing the outputs and the routers' choices, which have no gradient. Values
with a gradient need not be tried: they change the outputs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from ..case.calls import Calls
from ..case.case import Case
from ..case.module_state import remembered
from ..case.routing import routing
from ..parallel.placements import Replicate

MOST_ELEMENTS = 1 << 22  # of all parameters; a module with more is not examined, to save time
MOST_RUNS = 120  # of the changed module; places that are not tried by then count as reached
NOISE = 1e-10  # relative L2: float64 rounds far below it, even in sums of large numbers that cancel
MASK = torch.finfo(torch.bfloat16).max  # larger values mask an output, and do not count in the usual size
SHOWN = 6

Change = Callable[[torch.Tensor, float, torch.Generator], torch.Tensor]
# (values of any shape, their root mean square, random generator) -> other values; far ones change a router's choice
CHANGES: tuple[Change, ...] = (
    lambda x, scale, source: scale * torch.randn(x.shape, generator=source, dtype=x.dtype),
    lambda x, scale, source: x + 30 * scale * torch.randn(x.shape, generator=source, dtype=x.dtype).abs(),
    lambda x, scale, source: x - 30 * scale * torch.randn(x.shape, generator=source, dtype=x.dtype).abs(),
    lambda x, scale, source: torch.zeros_like(x),
)


def idle(case: Case, reference: nn.Module, calls: Calls) -> dict[str, torch.Tensor]:
    """For each parameter, the places along the dimension it is cut along (or 0) that change no output and no router.

    Args:
        case: its plan says along which dimension each parameter is cut.
        reference: the single-core module, with its weights.
        calls: with full tensors, any shape; floating-point ones in float32.

    Returns:
        Name -> bool (places,), True where nothing changes; empty for a module of more than MOST_ELEMENTS, or one that
        gives other outputs when it is run again.
    """
    module = case.reference_in(copy.deepcopy(reference), torch.float64)
    parameters = {name: p for name, p in module.named_parameters() if p.dtype == torch.float64 and p.ndim and p.numel()}
    if not parameters or sum(p.numel() for p in parameters.values()) > MOST_ELEMENTS:
        return {}
    probe = Probe(case, module, calls)
    if probe.moves():
        return {}
    gradients, size = _gradients(probe, module, parameters)
    found = {}
    for name, parameter in parameters.items():
        dim = getattr(case.plan.get(name, Replicate()), "dim", 0)
        rows = parameter.detach().movedim(dim, 0)  # a view: writing to it changes the parameter
        slope = gradients[name].movedim(dim, 0).reshape(len(rows), -1).norm(dim=1)
        unsure = (~(slope * _scale(rows) > NOISE * size)).nonzero()[:, 0].tolist()  # a nan is unsure too
        found[name] = torch.zeros(len(rows), dtype=torch.bool)
        found[name][probe.still(rows, unsure)] = True
    return found


class Probe:
    """Runs a module with some values changed, and compares its outputs; `left` counts the runs that remain."""

    def __init__(self, case: Case, module: nn.Module, calls: Calls) -> None:
        self.case, self.module, self.calls = case, module, calls
        self.left = MOST_RUNS
        self._source = torch.Generator().manual_seed(0)
        self._restore = remembered(module)
        with torch.no_grad():
            self._rest = self.run()

    def run(self) -> list[torch.Tensor]:
        """Run the module from its first state: its outputs and router tensors, any shape, float64 or integers."""
        self._restore()
        calls = self.calls.copied(torch.float64)
        with routing(self.module, self.case.routers) as routed:
            outputs = calls.run(self.module, state=tuple(self.case.state))
        return [*outputs.values(), *routed.tensors.values()]

    def moves(self) -> bool:
        """Whether the module as it is now gives other tensors than at first, by more than rounding, or raises."""
        try:
            with torch.no_grad():
                return any(differ(x, rest) for x, rest in zip(self.run(), self._rest, strict=True))
        except Exception:  # whatever it raises with other values: they do something
            return True

    def still(self, rows: torch.Tensor, places: Sequence[int]) -> list[int]:
        """Those of the places along dimension 0 of `rows` that may be changed without effect, found by bisection.

        `rows` is a view of a parameter, (places, ...), float64; it has its old values afterwards.
        """
        if not places or self.left < len(CHANGES):
            return []
        if not any(self._moved_by(change, rows, places) for change in CHANGES):
            return list(places)
        half = len(places) // 2
        return [*self.still(rows, places[:half]), *self.still(rows, places[half:])] if half else []

    def _moved_by(self, change: Change, rows: torch.Tensor, places: Sequence[int]) -> bool:
        self.left -= 1
        with torch.no_grad():
            before = rows[places].clone()
            rows[places] = change(before, _scale(rows), self._source)
            try:
                return self.moves()
            finally:
                rows[places] = before


def _scale(x: torch.Tensor) -> float:
    """Root mean square; 1 where everything is 0."""
    return x.square().mean().sqrt().item() or 1.0


def differ(x: torch.Tensor, rest: torch.Tensor) -> bool:
    """Whether two tensors of any shape, from two float64 runs, differ by more than rounding (a relative L2 of NOISE).

    Other shapes differ; integers and booleans differ if any element does; nan always does.
    """
    if x.shape != rest.shape or not x.is_floating_point():
        return x.shape != rest.shape or not torch.equal(x, rest)
    other = x != rest  # where both are infinite they are equal, and their difference is nan
    if not other.any():
        return False
    usual = rest[rest.abs() < MASK].abs()  # an unchanged mask does not measure the others
    size = torch.maximum(rest[other].norm(), usual.median() * other.sum().sqrt()) if usual.numel() else 0.0
    return not ((x - rest)[other].norm() <= NOISE * size)  # a nan differs


def _gradients(
    probe: Probe, module: nn.Module, parameters: Mapping[str, nn.Parameter]
) -> tuple[dict[str, torch.Tensor], float]:
    """By parameter, the gradient of the outputs' sum with random weights, zero where there is none; their norm."""
    source = torch.Generator().manual_seed(0)
    found: Sequence[torch.Tensor | None] = [None] * len(parameters)
    size = 1.0
    try:
        with torch.enable_grad():
            for parameter in parameters.values():  # others may be packed integers, which have no gradient
                parameter.requires_grad_()
            outputs = [y for y in probe.run() if y.requires_grad]
            weights = [torch.randn(y.shape, generator=source, dtype=y.dtype) for y in outputs]
            size = torch.stack([y.detach().norm() for y in outputs]).norm().item() if outputs else size
            if outputs:
                found = torch.autograd.grad(outputs, list(parameters.values()), weights, allow_unused=True)
    except RuntimeError:  # no gradient, or written in place
        pass
    pairs = zip(parameters.items(), found, strict=True)
    return {name: torch.zeros_like(p) if g is None else g for (name, p), g in pairs}, size


def notes(unreached: Mapping[str, torch.Tensor]) -> list[str]:
    """A sentence for each parameter with places that no draw reached: name -> bool (places,)."""
    said = []
    for name, places in unreached.items():
        at = places.nonzero()[:, 0].tolist()
        shown = ", ".join(map(str, at[:SHOWN])) + (", ..." if len(at) > SHOWN else "")
        some = f"{len(at)} of {len(places)} rows of {name} ({shown}) change" if len(at) < len(places) else ""
        if at:
            said.append(f"{some or f'{name} changes'} no output with these inputs: a mistake there is unseen")
    return said
