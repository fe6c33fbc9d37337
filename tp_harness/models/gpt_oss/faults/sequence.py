"""Mistakes of sequence parallel: they are put into components that run by plan "sp".

Each has been reported: a cause ends with a public report of its kind.
"""

from __future__ import annotations

from typing import Any

import torch

from ....faults.fault import Fault, sharded
from ....faults.ways import Apply, rewires, runs
from ....parallel.group import Group


def _own_only(group: Group, x: torch.Tensor, dim: int) -> torch.Tensor:
    """In the place of all ranks' tokens, this rank's, over and over."""
    return torch.cat([x] * group.size, dim)


def _other_order(group: Group, x: torch.Tensor, dim: int) -> torch.Tensor:
    """The ranks' tokens by turns, where each rank has neighbouring ones."""
    whole = group.all_gather(x, dim)
    return whole.unflatten(dim, (group.size, -1)).transpose(dim, dim + 1).flatten(dim, dim + 1)


def _along_the_batch(group: Group, x: torch.Tensor, dim: int) -> torch.Tensor:
    """Rows and tokens exchanged: as a (seq, batch) layout is gathered."""
    return group.all_gather(x, dim).transpose(0, 1).reshape(x.shape[0], -1, x.shape[-1])


def _next_rank_s(group: Group, x: torch.Tensor, dim: int) -> torch.Tensor:
    """The tokens of the rank after this one."""
    total = group.all_reduce(x.contiguous())
    length = x.shape[dim] // group.size
    return total.narrow(dim, (group.rank + 1) % group.size * length, length)


def _not_summed(group: Group, x: torch.Tensor, dim: int) -> torch.Tensor:
    """A rank's own summand of its tokens."""
    length = x.shape[dim] // group.size
    return x.narrow(dim, group.rank * length, length)


def _first_tokens(self: Any, x: torch.Tensor, is_cut: bool) -> torch.Tensor:
    return x[:, : x.shape[1] // self.size] if is_cut else x


def _fault(name: str, component: str, cause: str, apply: Apply, *flags: str) -> Fault:
    return Fault(name=name, number=0, component=component, cause=cause, apply=apply, active=sharded, flags=flags)


# fmt: off
FAULTS = (  # a fault reads as one paragraph
    _fault(
        "sequence-not-gathered", "attention", "The gather after the norm is missing (slapo#20).",
        rewires("", all_gather=_own_only), "q_rope", "output.0",
    ),
    _fault(
        "sequence-in-another-order", "attention", "Tokens are gathered in another order than they were cut "
        "(torchtitan#3206).", rewires("", all_gather=_other_order), "q_rope", "output.0",
    ),
    _fault(
        "sequence-batch-first-gathered", "attention",
        "Rows and tokens change places in the gather (TransformerEngine#530).",
        rewires("", all_gather=_along_the_batch), "q_rope", "output.0",
    ),
    _fault(
        "sequence-scattered-to-the-next", "attention",
        "A rank gets the sums of the next rank's tokens (Megatron-LM#7452).",
        rewires("", reduce_scatter=_next_rank_s), "total", "output.0",
    ),
    _fault(
        "sequence-not-summed", "attention", "A rank keeps its own summand of its tokens (vllm#49366).",
        rewires("", reduce_scatter=_not_summed), "total", "output.0",
    ),
    _fault(
        "sequence-bias-of-rank-0", "mlp", "Down biases are weighted as rank 0's tokens are (slapo#20).",
        runs("own_tokens", "forward", _first_tokens), "combined", "output.0",
    ),
)
