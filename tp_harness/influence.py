"""Which parts of an own module's parameters its inputs reach: a mistake in the others cannot show.

Found by the gradient of the outputs, added up with random weights: it is exactly 0 where nothing depends on a part.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import nn

from .case import Case, Tensors
from .placements import Replicate
from .rank import as_tuple

MOST_ELEMENTS = 1 << 22  # of all parameters; a backward of more would take longer than what it tells is worth
SHOWN = 6


def idle(case: Case, reference: nn.Module, inputs: Tensors) -> dict[str, torch.Tensor]:
    """For each parameter, the places along the dimension it is cut along (or 0) that change no output.

    Args:
        case: whose plan says along which dimension.
        reference: the single-core module.
        inputs: its inputs; floating-point ones in float32.

    Returns:
        Name -> bool [places]; nothing for a module that is too large or has no gradient.
    """
    module = case.reference_in(copy.deepcopy(reference), torch.float64)
    parameters = {name: p for name, p in module.named_parameters() if p.is_floating_point() and p.ndim and p.numel()}
    if not parameters or sum(p.numel() for p in parameters.values()) > MOST_ELEMENTS:
        return {}
    source = torch.Generator().manual_seed(0)
    try:
        with torch.enable_grad():
            module.requires_grad_()
            outputs = as_tuple(module(*(x.double() if x.is_floating_point() else x.clone() for x in inputs)))
            weights = [torch.randn(y.shape, generator=source, dtype=y.dtype) for y in outputs]
            gradients = torch.autograd.grad(outputs, list(parameters.values()), weights, allow_unused=True)
    except RuntimeError:  # no gradient, or written in place
        return {}
    found = {}
    for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
        dim = getattr(case.plan.get(name, Replicate()), "dim", 0)
        zero = torch.ones_like(parameter, dtype=torch.bool) if gradient is None else gradient == 0
        found[name] = zero.movedim(dim, 0).flatten(1).all(dim=1) if zero.ndim > 1 else zero
    return found


def notes(unreached: Mapping[str, torch.Tensor]) -> list[str]:
    """A sentence for each parameter of which no draw reached some places."""
    said = []
    for name, places in unreached.items():
        at = places.nonzero()[:, 0].tolist()
        shown = ", ".join(map(str, at[:SHOWN])) + (", ..." if len(at) > SHOWN else "")
        some = f"{len(at)} of {len(places)} rows of {name} ({shown}) change" if len(at) < len(places) else ""
        if at:
            said.append(f"{some or f'{name} changes'} no output with these inputs: a mistake there is unseen")
    return said
