"""A gate: a measured number that must not exceed its limit, and the tensor that it was measured on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

REL_L2, TOKEN, RATIO = "rel_L2", "worst token", "R"  # kinds that are measured on a tensor
_FORMER = ("worst block",)  # kinds of older files


@dataclass(frozen=True, kw_only=True)
class Gate:
    """A measured number and its limit: `kind` is what is measured, `reason` says where the limit comes from.

    `metric` joins kind and tensor for messages, `rel_L2 of output.0`; no code depends on it. Numbers have no unit.
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
        """A Gate's JSON values of an older file, which has the metric alone; kind and tensor are added."""
        metric = values.get("metric")
        return (kind_and_tensor(metric) if isinstance(metric, str) else {}) | values

    @property
    def passed(self) -> bool:
        """True if the value is at most the limit; a NaN is not."""
        return self.value <= self.limit


def kind_and_tensor(metric: str) -> dict[str, str]:
    """The fields `kind` and `tensor` that a metric of an older file stands for."""
    kind, _, tensor = metric.partition(" of ")
    return {"kind": kind, "tensor": tensor} if kind in (REL_L2, TOKEN, RATIO, *_FORMER) else {"kind": metric}
