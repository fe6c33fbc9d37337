"""What a run in exact arithmetic went through: decisions and their margins, the branches taken, and what escaped."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

TIE = 1e-9  # of the scale of what is compared: a nearer decision may fall otherwise in another order of sums


@dataclass
class Branch:
    """Of one kind of decision: how many there were, how many of each outcome, and the smallest relative margin."""

    decisions: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    margin: float = float("inf")


@dataclass
class Seen:
    """By kind of decision its branches, and one sentence for each way in which numbers left exact arithmetic."""

    branches: dict[str, Branch] = field(default_factory=dict)
    escapes: list[str] = field(default_factory=list)
    zeros: int = 0  # inverted residues 0
    rounded: bool = False  # tensors of constants that are rounded numbers were used

    def decide(self, kind: str, margins: torch.Tensor) -> None:
        """Note decisions with their relative margins; any shape, not negative, an infinite one is sure."""
        branch = self.branches.setdefault(kind, Branch())
        branch.decisions += margins.numel()
        if margins.numel():
            branch.margin = min(branch.margin, float(margins.nan_to_num(nan=0.0, posinf=math.inf).min()))

    def count(self, kind: str, **outcomes: int) -> None:
        """Count outcomes of decisions of a kind."""
        counts = self.branches.setdefault(kind, Branch()).counts
        for name, number in outcomes.items():
            counts[name] = counts.get(name, 0) + number

    def escape(self, sentence: str) -> None:
        """Note a way out of exact arithmetic, once."""
        if sentence not in self.escapes:
            self.escapes.append(sentence)
