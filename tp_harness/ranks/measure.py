"""The cost of a forward on a rank: wall and CPU time, time in collectives, FLOPs, resident memory.

Nothing here changes a number that is judged; the forward that is judged is timed as it runs, and further ones
(`--repeats`) run after it.

Not covered: what a device does by itself (power, its own counters); collectives that a user's module issues without
`Group` are recorded but not timed.
"""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import torch

from ..libraries.torch_private import DispatchMode, flop_formulas
from ..parallel.dtensors import is_dtensor_type
from ..parallel.group import Group
from ..results.result import Collective, Forwards

T = TypeVar("T")


class Stopwatch:
    """Times forwards of one rank, in seconds; `cpu_seconds` reads the rank's own CPU clock."""

    def __init__(self, group: Group, cpu_seconds: Callable[[], float] = time.process_time) -> None:
        self.group, self.cpu_seconds = group, cpu_seconds
        self.wall_s: list[float] = []
        self.cpu_s: list[float] = []
        self.calls: list[tuple[Collective, ...]] = []

    def time(self, forward: Callable[[], tuple[T, tuple[Collective, ...]]]) -> tuple[T, tuple[Collective, ...]]:
        """Run `forward` once and note its seconds; returns what it returns, its outputs and the collectives issued."""
        wall, cpu = time.perf_counter(), self.cpu_seconds()
        outputs, calls = forward()
        self.wall_s.append(time.perf_counter() - wall)
        self.cpu_s.append(self.cpu_seconds() - cpu)
        self.calls.append(calls)
        return outputs, calls

    def repeat(self, forward: Callable[[], tuple[T, tuple[Collective, ...]]], repeats: int) -> T:
        """Time `repeats` more forwards, each begun by all ranks together, and drop the times noted before.

        Returns:
            The outputs of the last one.
        """
        self.wall_s, self.cpu_s, self.calls = [], [], []
        for _ in range(repeats):
            self.group.meet()
            outputs, _calls = self.time(forward)
        return outputs

    def forwards(self, *, warm: bool, eager: bool = True) -> Forwards:
        """The times noted, in seconds; where calls are not `eager`, none of a cold forward, and no CPU time."""
        if not (warm or eager):
            return Forwards(wall_s=(), cpu_s=())
        sums = [[call.seconds for call in calls] for calls in self.calls]
        return Forwards(
            wall_s=_rounded(self.wall_s),
            cpu_s=_rounded(self.cpu_s) if eager else (),
            collective_s=_rounded(sum(s for s in each if s is not None) for each in sums if None not in each),
            warm=warm,
        )

    def timed(self, calls: tuple[Collective, ...]) -> tuple[Collective, ...]:
        """The calls, each with its median seconds over the forwards that made the same calls."""
        alike = [each for each in self.calls if each == calls] or [calls]
        return tuple(_median_call(same) for same in zip(*alike, strict=True))


def _median_call(same: tuple[Collective, ...]) -> Collective:
    seconds = [call.seconds for call in same if call.seconds is not None]
    return replace(same[0], seconds=round(median(seconds), 7) if seconds else None)


def _rounded(seconds: Iterable[float]) -> tuple[float, ...]:
    return tuple(round(s, 7) for s in seconds)


def _matmul_flops(x: torch.Tensor, _y: torch.Tensor, *, out_val: torch.Tensor) -> int:
    return 2 * out_val.numel() * x.shape[-1]


# matmul is here because torch's own decomposition of it imports sympy: a third of a second per rank.
_FORMULAS: dict[Any, Callable[..., int]] = {**flop_formulas(), torch.ops.aten.matmul: _matmul_flops}


_PLAIN = torch.Tensor.__torch_dispatch__  # of a tensor that does not dispatch by itself


class FlopCount(DispatchMode):
    """Counts floating-point operations inside its `with` block in `flops`, by torch.utils.flop_counter's formulas.

    torch's own `FlopCounterMode` counts the same, but imports torch._dynamo and sympy at its first operation: more
    than a second and 40 MB in every rank.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if any(map(is_dtensor_type, types)):
            return NotImplemented  # DTensor's own dispatch is next, whose operations on this rank's data come back here
        if func.namespace == "prim" or any(getattr(kind, "__torch_dispatch__", _PLAIN) is not _PLAIN for kind in types):
            return func(*args, **(kwargs or {}))  # no data: DTensor asks for the output's shape
        formula = _FORMULAS.get(func.overloadpacket)
        if formula is None:
            with self:  # in inference mode a linear or einsum arrives here whole
                parts = func.decompose(*args, **(kwargs or {}))
            if parts is not NotImplemented:
                return parts
        out = func(*args, **(kwargs or {}))
        if formula is not None:
            self.flops += int(formula(*args, **(kwargs or {}), out_val=out))
        return out


def count_flops(forward: Callable[[], Any]) -> int:
    """Floating-point operations of one run of `forward`: matrix products and attention (torch.utils.flop_counter)."""
    with FlopCount() as count:
        forward()
    return count.flops


class PeakMemory:
    """The most memory this process had resident since `start`, in bytes; pages shared with others count in full.

    Where the system cannot reset its peak (any but Linux), the most the process ever had.
    """

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Forget earlier peaks, and note the resident bytes of now in `begin_bytes`."""
        with contextlib.suppress(OSError):  # no Linux, or a container that forbids it
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # man 5 proc: resets VmHWM
        self.begin_bytes = _status_bytes("VmRSS")

    def peak_bytes(self) -> int:
        """The most bytes that were resident since `start`."""
        unit = 1 if sys.platform == "darwin" else 1024
        return _status_bytes("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _status_bytes(field: str) -> int:
    """A size of /proc/self/status in bytes; 0 where there is none."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), 0)
