"""The number that a verdict hangs on: what is measured, on which tensor, and its limit."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

REL_L2, TOKEN, BLOCK, RATIO = "rel_L2", "worst token", "worst block", "R"  # kinds that are measured on a tensor


@dataclass(frozen=True, kw_only=True)
class Gate:
    """The number a verdict hangs on: what is measured, on which tensor. `reason` says where the limit comes from.

    `metric` names both in messages, `rel_L2 of output.0`; nothing reads it.
    """

    kind: str
    tensor: str = ""
    value: float
    limit: float
    reason: str
    undecided: bool = False  # over the limit, but no farther off than the single-core reference itself
    metric: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "metric", f"{self.kind} of {self.tensor}" if self.tensor else self.kind)

    @staticmethod
    def from_older(values: dict[str, Any]) -> dict[str, Any]:
        """The values of a file that holds the metric alone, with its kind and tensor."""
        metric = values.get("metric")
        return (kind_and_tensor(metric) if isinstance(metric, str) else {}) | values

    @property
    def passed(self) -> bool:
        """True within the limit; a NaN never is."""
        return self.value <= self.limit


def kind_and_tensor(metric: str) -> dict[str, str]:
    """The fields of a Gate of which an older file has the metric alone."""
    kind, _, tensor = metric.partition(" of ")
    return {"kind": kind, "tensor": tensor} if kind in (REL_L2, TOKEN, BLOCK, RATIO) else {"kind": metric}
