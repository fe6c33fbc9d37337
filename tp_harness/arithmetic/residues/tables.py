"""Tables of residues: powers and inverses, looked up by residue."""

from __future__ import annotations

import torch

from .primes import powers, primitive_root


def index_of(residue: torch.Tensor, m: int) -> torch.Tensor:
    """The representative from 0 to m - 1 of a residue within m of 0, of any shape."""
    return torch.where(residue < 0, residue + m, residue)


def look_up(table: torch.Tensor, residue: torch.Tensor, m: int) -> torch.Tensor:
    """The entries (m,) of a table for residues of any shape; unknown (nan) where the residue is."""
    index = index_of(residue, m).nan_to_num_(nan=0.0).to(torch.int32)
    found = table.index_select(0, index.reshape(-1)).to(torch.float64).view(residue.shape)
    return found.add_(residue * 0)  # nan where it is nan


def balanced(values: torch.Tensor, m: int) -> torch.Tensor:
    """Whole numbers from 0 to m - 1 (any shape) as the residues nearest to 0, int32."""
    return torch.where(values > m // 2, values - m, values).to(torch.int32)


def inverses_of(m: int) -> torch.Tensor:
    """1 / r modulo a prime m for every r, int64 (m,); 0 for 0."""
    power = powers(primitive_root(m), m - 1, m)
    inverses = torch.zeros(m, dtype=torch.int64)
    inverses[power] = power[(-torch.arange(m - 1)) % (m - 1)]
    return inverses
