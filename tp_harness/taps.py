"""Observing and replacing intermediate tensors through forward hooks on named submodules.

Reference and sharded modules carry torch.nn.Identity submodules under the same names, so a tap costs nothing
until somebody listens. Routing is locked the same way: a hook on `chosen` returns the oracle's choice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

LOGITS, CHOSEN = "router_logits", "chosen"


def tap_name(router: str, tap: str) -> str:
    """`mlp` and `chosen` to `mlp.chosen`; the module itself is ""."""
    return f"{router}.{tap}" if router else tap


@contextmanager
def routing(
    module: nn.Module, routers: tuple[str, ...], locks: Mapping[str, torch.Tensor] | None = None
) -> Iterator[dict[str, torch.Tensor]]:
    """Record every router's logits [tokens, experts] and own choice [tokens, k]; lock the choice if asked.

    Yields a dict that fills as the module runs: `mlp.router_logits`, `mlp.chosen`, ... `locks` maps the latter
    names to what shall be used instead of the module's own choice.
    """
    record: dict[str, torch.Tensor] = {}

    def listen(name: str, lock: torch.Tensor | None) -> torch.utils.hooks.RemovableHandle:
        def hook(_module: nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor | None:
            record[name] = output.detach().flatten(0, -2)
            return None if lock is None else lock.view(output.shape)

        return module.get_submodule(name).register_forward_hook(hook)

    with ExitStack() as stack:
        for router in routers:
            chosen = tap_name(router, CHOSEN)
            for name, lock in ((tap_name(router, LOGITS), None), (chosen, locks[chosen] if locks else None)):
                stack.callback(listen(name, lock).remove)
        yield record


def same_choice(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Per token, whether two choices [tokens, k] are the same set of experts."""
    return (a.sort(dim=-1).values == b.sort(dim=-1).values).all(dim=-1)
