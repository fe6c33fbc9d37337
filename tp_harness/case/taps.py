"""Observing intermediate tensors through forward hooks on named submodules.

Reference and sharded modules carry torch.nn.Identity submodules under the same names, so a tap costs nothing
until somebody listens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from ..results.tensor_names import of_call
from .calls import now

LOGITS, SCORES, CHOSEN = "router_logits", "router_scores", "chosen"
Source = tuple[str, int | None]  # the submodule that gives a tensor, and which of its outputs (None: the only one)
PER_EXPERT = ("gate_up", "activation")  # their rows are (expert, token) pairs rather than tokens


def tap_name(router: str, tap: str) -> str:
    """The tap's full name: `mlp.chosen` of `mlp` and `chosen`; the router "" is the module itself."""
    return f"{router}.{tap}" if router else tap


def _as_it_is(name: str, output: torch.Tensor) -> torch.Tensor:
    return output


@contextmanager
def tapping(
    module: nn.Module,
    sources: Mapping[str, Source],
    read: Callable[[str, torch.Tensor], torch.Tensor] = _as_it_is,
    graft: Callable[[str, torch.Tensor], torch.Tensor] = _as_it_is,
) -> Iterator[dict[str, torch.Tensor]]:
    """Record tensors of any shape by tap name, as `read(name, tensor)`; submodules that are missing are left out.

    Yields a dict that is filled when the block ends, in the order of first calls. A submodule called several times in
    one call of the module gives its outputs joined along dimension 0; those of a named call have its name before. What
    the module goes on with is `graft(name, tensor)`, which is not recorded. Enter it before a lock of routers: what it
    records of a choice would otherwise be the lock's.
    """
    calls: dict[str, list[torch.Tensor]] = {}
    record: dict[str, torch.Tensor] = {}
    known = dict(module.named_modules())

    def listen(name: str, source: str, at: int | None) -> torch.utils.hooks.RemovableHandle:
        def hook(_module: nn.Module, _inputs: object, output: Any) -> Any:
            own, full = output if at is None else output[at], of_call(now().name, name)
            calls.setdefault(full, []).append(read(full, own).detach().clone())  # a reduction may overwrite its input
            given = graft(full, own)
            return None if given is own else _with(output, at, given)

        return known[source].register_forward_hook(hook)

    with ExitStack() as stack:
        for name, (source, at) in sources.items():
            if source in known:
                stack.callback(listen(name, source, at).remove)
        yield record
    record |= {name: torch.cat(outputs) if len(outputs) > 1 else outputs[0] for name, outputs in calls.items()}


def _with(output: Any, at: int | None, value: torch.Tensor) -> Any:
    """A submodule's output with another value of a tensor; `output` itself where that is no tuple or list."""
    if at is None:
        return value
    if not isinstance(output, (tuple, list)):
        return output
    parts = [*output[:at], value, *output[at + 1 :]]
    return type(output)(*parts) if hasattr(output, "_fields") else type(output)(parts)


def same_choice(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Per token, bool (tokens,), whether two choices (tokens, k) are the same set of experts."""
    return (a.sort(dim=-1).values == b.sort(dim=-1).values).all(dim=-1)
