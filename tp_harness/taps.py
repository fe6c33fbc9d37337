"""Observing and replacing intermediate tensors through forward hooks on named submodules.

Reference and sharded modules carry torch.nn.Identity submodules under the same names, so a tap costs nothing
until somebody listens. Routing is locked the same way: a hook on `chosen` returns the oracle's choice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

LOGITS, CHOSEN = "router_logits", "chosen"
PER_EXPERT = ("gate_up", "activation")  # their rows are (expert, token) pairs rather than tokens


def tap_name(router: str, tap: str) -> str:
    """`mlp` and `chosen` to `mlp.chosen`; the module itself is ""."""
    return f"{router}.{tap}" if router else tap


def tap_key(dtype: str, name: str) -> str:
    """What a rank's file calls a tapped tensor."""
    return f"{dtype}.tap.{name}"


@contextmanager
def routing(
    module: nn.Module, routers: tuple[str, ...], locks: Mapping[str, torch.Tensor] | None = None
) -> Iterator[dict[str, torch.Tensor]]:
    """Record every router's logits [tokens, experts] and own choice [tokens, k]; lock the choice if asked.

    Yields a dict that fills as the module runs: `mlp.router_logits`, `mlp.chosen`, ... `locks` maps the latter
    names to what shall be used instead of the module's own choice. A choice of another number of experts stays as it
    is: a lock of the right one would hide it, and the verdict says it.
    """
    record: dict[str, torch.Tensor] = {}

    def listen(name: str, lock: torch.Tensor | None) -> torch.utils.hooks.RemovableHandle:
        def hook(_module: nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor | None:
            record[name] = output.detach().flatten(0, -2)
            fits = lock is not None and lock.numel() == output.numel()
            return lock.view(output.shape) if lock is not None and fits else None

        return module.get_submodule(name).register_forward_hook(hook)

    with ExitStack() as stack:
        for router in routers:
            chosen = tap_name(router, CHOSEN)
            for name, lock in ((tap_name(router, LOGITS), None), (chosen, locks[chosen] if locks else None)):
                stack.callback(listen(name, lock).remove)
        yield record


@contextmanager
def tapping(module: nn.Module, names: Iterable[str]) -> Iterator[dict[str, torch.Tensor]]:
    """Record the outputs of the named submodules; names that the module has not are left out.

    Yields a dict that is filled when the block ends. A submodule called several times gives its outputs joined along
    dimension 0. Enter it before `routing`, whose lock would otherwise be what is seen of `chosen`.
    """
    calls: dict[str, list[torch.Tensor]] = {}
    record: dict[str, torch.Tensor] = {}
    known = dict(module.named_modules())

    def listen(name: str) -> torch.utils.hooks.RemovableHandle:
        def hook(_module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
            calls.setdefault(name, []).append(output.detach().clone())  # a reduction may overwrite its input

        return known[name].register_forward_hook(hook)

    with ExitStack() as stack:
        for name in names:
            if name in known:
                stack.callback(listen(name).remove)
        yield record
    record |= {name: torch.cat(outputs) if len(outputs) > 1 else outputs[0] for name, outputs in calls.items()}


def same_choice(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Per token, whether two choices [tokens, k] are the same set of experts."""
    return (a.sort(dim=-1).values == b.sort(dim=-1).values).all(dim=-1)
