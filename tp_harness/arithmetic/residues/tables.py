"""Tables of residues: powers and inverses, looked up by residue, modulo several numbers at once."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch

from .primes import powers, primitive_root


class Tables:
    """For each of several moduli m a table of m entries.

    Args:
        joined: the tables one after the other, int32 (sum of the moduli,).
        moduli: theirs, in this order.
    """

    def __init__(self, joined: torch.Tensor, moduli: Sequence[int]) -> None:
        self.joined = joined
        self._moduli = torch.tensor(moduli, dtype=torch.float64)
        self._starts = torch.tensor(list(accumulate(moduli, initial=0))[:-1], dtype=torch.float64)

    def look_up(self, residues: torch.Tensor) -> torch.Tensor:
        """The entries for residues, (moduli, *shape), float64; unknown (nan) where the residue is."""
        index = index_of(residues, column(self._moduli, residues)).add_(column(self._starts, residues))
        found = self.joined.index_select(0, index.nan_to_num_(nan=0.0).to(torch.int32).reshape(-1))
        return found.to(torch.float64).view(residues.shape).add_(residues * 0)  # nan where it is nan


def column(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Values (n,) so that they broadcast along the first dimension of `like`, of any shape: (n, 1, ...)."""
    return values.view(-1, *_ONES[: like.dim() - 1])


_ONES = (1,) * 64


def index_of(residues: torch.Tensor, moduli: torch.Tensor | int) -> torch.Tensor:
    """The representatives from 0 to m - 1 of residues within m of 0, any shape to which the moduli broadcast."""
    return torch.where(residues < 0, residues + moduli, residues)


def balanced(residues: torch.Tensor, moduli: torch.Tensor | int) -> torch.Tensor:
    """The representatives within m / 2 of 0 of residues within m of it, in shape and dtype as `index_of`."""
    index = index_of(residues, moduli)
    return torch.where(index > moduli // 2, index - moduli, index)


def table_of_powers(g: int, q: int, p: int) -> torch.Tensor:
    """g^k modulo p for k below q, balanced, int32 (q,)."""
    return balanced(powers(g, q, p), p).to(torch.int32)


def table_of_inverses(m: int) -> torch.Tensor:
    """1 / r modulo an odd prime m for every r, 0 for 0: balanced, int32 (m,).

    Half of all r are g^k for k below h = (m - 1) / 2, with the inverse -g^(h - k), because g^h = -1; the others are the
    negatives of these.
    """
    power = powers(primitive_root(m), (m - 1) // 2, m)
    own = balanced(power.to(torch.int32), m)
    inverse = torch.cat((own[:1], -own[1:].flip(0)))
    table = torch.zeros(m, dtype=torch.int32)
    table[power], table[m - power] = inverse, -inverse
    return table
