"""Sequence parallel: between the sharded regions every rank has its own part of the sequence.

A sharded region begins with an all_gather of the sequence and ends with a reduce_scatter in the place of the
all_reduce; norms and residuals are computed on a rank's own tokens (Korthikanti et al. 2022, arXiv 2205.05198).
neuronx-distributed does so in context encoding. Where the ranks do not divide the sequence, one token of a decode above
all, hidden states are whole on every rank.
"""

from __future__ import annotations

import torch
from torch import nn

from ....parallel.group import Group
from ....parallel.placements import Placement, Replicate, Shard
from ..config import InferenceConfig, ModelConfig


def placement(config: ModelConfig) -> Placement:
    """Where hidden states (batch, seq, ...) are between sharded regions."""
    is_cut = isinstance(config, InferenceConfig) and config.cuts_sequence(config.neuron_config.tp_degree)
    return Shard(1) if is_cut else Replicate()


def gathered(group: Group, x: torch.Tensor, is_cut: bool) -> torch.Tensor:
    """The tokens of all ranks: (batch, seq / size, ...) to (batch, seq, ...), or `x` where it is whole."""
    return group.all_gather(x.contiguous(), dim=1) if is_cut else x


def summed(group: Group, partial: torch.Tensor, is_cut: bool) -> torch.Tensor:
    """The sum over ranks of (batch, seq, ...): this rank's tokens (batch, seq / size, ...), or all of them."""
    return group.reduce_scatter(partial, dim=1) if is_cut else group.all_reduce(partial)


class OwnTokens(nn.Module):
    """A rank's part of the sequence of what every rank has whole; under a plan that cuts none, no part is taken."""

    rank: torch.Tensor

    def __init__(self, group: Group, cuts: bool) -> None:
        super().__init__()
        self.size = group.size
        # data, as `vocab_start` of the embedding is: a rank folded into a traced graph would be every rank's
        if cuts:
            self.register_buffer("rank", torch.tensor([group.rank], device="cpu"), persistent=False)

    def forward(self, x: torch.Tensor, is_cut: bool) -> torch.Tensor:
        """(batch, seq, ...) to (batch, seq / size, ...), or `x` where hidden states are whole."""
        if not is_cut:
            return x
        length = x.shape[1] // self.size
        return x.index_select(1, self.rank * length + torch.arange(length, device=self.rank.device))
