"""The first tokens of each row of a run, which suffice for a control where no token depends on another.

Few tokens choose few experts, so that a fault among experts of real size costs a fraction of a full forward.
"""

from __future__ import annotations

import torch


def of_rows(x: torch.Tensor, tokens: int) -> torch.Tensor:
    """(batch, seq, ...) to (batch, tokens, ...), same dtype; `tokens` 0 means all."""
    return x[:, :tokens].contiguous() if tokens else x


def of_flat(x: torch.Tensor, tokens: int, batch: int) -> torch.Tensor:
    """(batch * seq, ...) to (batch * tokens, ...), same dtype; `tokens` 0 means all."""
    return of_rows(x.unflatten(0, (batch, -1)), tokens).flatten(0, 1) if tokens else x
