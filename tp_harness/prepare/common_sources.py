"""Which tensors of a reference have something in common that no tap shows: one mistake there makes several wrong.

Query and key come from one projection, a token's experts and their biases are weighted by one softmax. Found in
autograd's graph of a run in which every tap passes on a leaf of its own.

Not covered: what has no gradient (whole numbers but choices, and all of a module that turns gradients off).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..case.case import Case
from ..case.routing import Lock, routing
from ..case.taps import tapping
from .oracle import Tapped

Sources = Mapping[str, frozenset[Any]]  # of a tensor by name: opaque values


def common_sources(case: Case, tapped: Tapped, locks: Mapping[str, Lock]) -> Sources:
    """For each tap and output, parameters and untapped values that it is computed from when all taps are given.

    Returns:
        Name -> values of which two tensors share one where they have a source in common; empty where the reference
        cannot be run with gradients.
    """
    module = case.reference_in(tapped.reference, torch.float64)
    try:
        with torch.enable_grad(), _learning(module), torch.autograd.graph.saved_tensors_hooks(_drop, _dropped):
            return _run(case, module, tapped, locks)
    except Exception:  # a user's module need not allow gradients
        return {}


def _drop(_tensor: torch.Tensor) -> None:
    """Nothing is kept for a backward pass, which never runs."""


def _dropped(_nothing: None) -> torch.Tensor:
    raise RuntimeError("there is no backward pass")


@contextmanager
def _learning(module: nn.Module) -> Iterator[None]:
    """All floating-point parameters with a gradient, so that they are in the graph."""
    before = {p: p.requires_grad for p in module.parameters() if p.is_floating_point()}
    try:
        for parameter in before:
            parameter.requires_grad_()
        yield
    finally:
        for parameter, required in before.items():
            parameter.requires_grad_(required)


def _run(case: Case, module: nn.Module, tapped: Tapped, locks: Mapping[str, Lock]) -> Sources:
    ends: dict[str, list[Any]] = {}  # by name, the nodes that made a tensor in each of its calls
    passed: dict[Any, str] = {}  # the node by which a tap passes on its leaf -> the tap

    def read(name: str, own: torch.Tensor) -> torch.Tensor:
        ends.setdefault(name, []).append(own.grad_fn)
        return own

    def graft(name: str, own: torch.Tensor) -> torch.Tensor:
        if not own.is_floating_point():
            return own
        given = own.detach().requires_grad_().clone()  # a module may write to it, which a leaf does not allow
        passed[given.grad_fn] = name
        return given

    calls = tapped.calls.copied(torch.float64)
    with (
        case.computing_in(module, torch.float64),
        tapping(module, case.watched, read, graft),
        routing(module, case.routers, locks),
    ):
        calls.run(module, read, tuple(case.state))
    return {name: frozenset(_sources(case, name, nodes, passed)) for name, nodes in ends.items()}


def _sources(case: Case, name: str, nodes: list[Any], passed: Mapping[Any, str]) -> set[Any]:
    """What a tensor is computed from, before the taps that pass on their leaves.

    A router's choice, which has no gradient, counts as a source of itself and of what is computed from its scores.
    """
    found: set[Any] = set()
    pending = [node for node in nodes if node is not None]
    scores: set[str] = set()
    while pending:
        node = pending.pop()
        if node in passed:
            scores.add(passed[node])
        elif node not in found:
            found.add(node)
            pending += [before for before, _ in node.next_functions if before is not None]
    chosen = {r.chosen for r in case.routers if name == r.chosen or scores & {r.logits, r.scores}}
    return found | chosen
