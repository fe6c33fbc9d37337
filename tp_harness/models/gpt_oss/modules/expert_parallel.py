"""Expert parallel: experts shared out along the axis ep of a mesh, each expert's columns along its axis tp.

Two ways of dispatch. Replicated: every rank has all tokens, computes its experts, and one sum over all ranks makes them
whole. all_to_all (Lepikhin et al. 2020, arXiv 2006.16668): every row of ranks along tp has its part of the sequence,
sends each token to the rows that hold its experts, and adds up what comes back. Shapes are fixed: each row may be sent
every token, so that none is dropped; a token that it has no expert for is sent as zeros.

Shape suffixes: B batch, s own tokens of a row of the batch, S all of them, H hidden, r rows of ranks (ep), E experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import torch
from torch import nn

from ....parallel.group import Group
from ....parallel.placements import Placement

Placed: TypeAlias = Placement | Mapping[str, Placement]  # over all ranks, or along axes of the mesh


class LocalExperts(nn.Module):
    """The router's weights of the experts that this rank holds."""

    first: torch.Tensor

    def __init__(self, group: Group, count: int) -> None:
        super().__init__()
        self.size, self.count = group.size, count
        # data, as `vocab_start` of the embedding is: a rank folded into a traced graph would be every rank's
        self.register_buffer("first", torch.tensor([group.rank * count], device="cpu"), persistent=False)

    def forward(self, weights_TE: torch.Tensor) -> torch.Tensor:
        """(tokens, experts) to (tokens, experts of this rank)."""
        if self.size == 1:
            return weights_TE
        return weights_TE.index_select(1, self.first + torch.arange(self.count, device=self.first.device))


def dispatched(group: Group, t_BsH: torch.Tensor, weights_BsE: torch.Tensor) -> torch.Tensor:
    """The tokens of all rows, (batch, seq, hidden), zero where this row has no expert for one.

    `group` is along ep; (batch, seq / size, hidden) and their router weights (batch, seq / size, experts) are own.
    """
    is_sent_rBs = weights_BsE.unflatten(-1, (group.size, -1)).any(-1).movedim(-1, 0)
    sent_rBsH = torch.where(is_sent_rBs[..., None], t_BsH, torch.zeros_like(t_BsH))
    return group.all_to_all(sent_rBsH, 0, 0).transpose(0, 1).flatten(1, 2)


def combined(group: Group, partial_BSH: torch.Tensor) -> torch.Tensor:
    """The sum over rows, for this row's own tokens, of what their experts made of all, (batch, seq, hidden)."""
    own_rBsH = partial_BSH.unflatten(1, (group.size, -1)).transpose(0, 1).contiguous()
    return group.all_to_all(own_rBsH, 0, 0).sum(0)
