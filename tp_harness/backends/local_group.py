"""Ranks as threads that take turns: one runs until it enters a collective or returns, then the next one does.

With one rank at a time a run is deterministic, a breakpoint stops all ranks, and a collective that some rank never
enters is found at once, because no rank can run. Sums have the same bits as gloo's.
"""

from __future__ import annotations

import math
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from ..launch.outcome import Report
from ..launch.stacks import name_ranks
from ..parallel.group import Group, collective
from ..results.collective import EVERYWHERE, Collective, Exchange

RING_SEGMENT_BYTES = 1 << 20  # gloo's default for the largest piece that a ring passes on


class Abandoned(BaseException):
    """The run is over: raised in ranks that wait. No `Exception`, so that no module catches it by accident."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """One rank's part in a collective: its input, of any shape and dtype; `detail` are dimensions or the source."""

    what: Collective
    tensor: torch.Tensor
    detail: tuple[int, ...] = ()

    @property
    def members(self) -> tuple[int, ...]:
        """The ranks of its group; () for all."""
        return (self.what.exchange or EVERYWHERE).members

    @property
    def agreement(self) -> tuple[object, ...]:
        """What must be the same on all ranks: of a sum, as in gloo, the number of elements and not the shape."""
        shape = self.what.shape if self.what.kind in ("all_gather", "all_to_all") else self.tensor.numel()
        return self.what.kind, shape, self.what.dtype, self.detail


Combine = Callable[[Sequence[Call]], list[torch.Tensor]]


class Turns:
    """Whose turn it is among `size` ranks, and the calls of those that wait."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.running = 0
        self.returned: set[int] = set()
        self.failure: tuple[int, Report] | None = None
        self.over = threading.Event()  # every rank returned, one failed, or the run was abandoned
        self._threads: dict[int, int] = {}
        self._gates = [threading.Semaphore(0) for _ in range(size)]
        self._gates[0].release()
        self._waiting: dict[int, Call] = {}
        self._results: dict[int, torch.Tensor] = {}

    def wait(self, rank: int) -> None:
        """Block until it is this rank's turn.

        Raises:
            Abandoned: the run is over.
        """
        self._threads[rank] = threading.get_ident()
        if not self.over.is_set():
            self._gates[rank].acquire()
        if self.over.is_set():
            raise Abandoned
        self.running = rank

    def meet(self, rank: int, call: Call, combine: Combine) -> torch.Tensor:
        """Enter a collective and wait for this rank's result; the last member to enter computes all with `combine`.

        Args:
            rank: who enters.
            call: the rank's input, of any shape and dtype.
            combine: all members' calls, in the order of ranks -> each one's result, shaped as the collective says.

        Raises:
            Abandoned: the run is over, perhaps because the ranks' calls disagree.
        """
        if self.over.is_set():
            raise Abandoned
        self._waiting[rank] = call
        members = self._members(call)
        if not self._absent(call):
            calls = {r: self._waiting[r] for r in members}
            self._check_agreement(calls)
            self._results |= zip(members, combine(list(calls.values())), strict=True)
            self._waiting = {r: other for r, other in self._waiting.items() if r not in members}
        self._pass_on(rank)
        self.wait(rank)
        return self._results.pop(rank)

    def leave(self, rank: int) -> None:
        """Note that this rank has returned, and let the next one run."""
        self.returned.add(rank)
        if len(self.returned) == self.size:
            self.over.set()
        else:
            self._pass_on(rank)

    def fail(self, rank: int, error: str, trace: str) -> None:
        """Note that this rank failed, and end the others."""
        self.failure = self.failure or (rank, Report(time_ns=time.monotonic_ns(), error=error, traceback=trace))
        self.abandon()

    def abandon(self) -> None:
        """End the run: every rank that waits, now or later, raises Abandoned."""
        self.over.set()
        for gate in self._gates:
            gate.release()

    def stack(self, rank: int) -> str:
        """The stack of a rank as text, innermost call last; "" when it has returned."""
        frame = sys._current_frames().get(self._threads.get(rank, -1))
        return "".join(traceback.format_stack(frame)) if frame and rank not in self.returned else ""

    def _pass_on(self, rank: int) -> None:
        """Let the next rank run that can; if there is none, the run fails: some wait for others that returned."""
        others = [(rank + i) % self.size for i in range(1, self.size + 1)]
        able = [r for r in others if r not in self._waiting and r not in self.returned]
        if able:
            self._gates[able[0]].release()
            return
        waiting = sorted(self._waiting)
        call = self._waiting[waiting[0]]
        absent = self._absent(call)
        elsewhere = [r for r in absent if r in self._waiting]
        inside = [r for r in self._members(call) if r not in absent]
        if elsewhere:
            other = self._waiting[elsewhere[0]].what
            self._disagree(
                elsewhere[0], f"it waits in {other} where {_wait(inside)} in {call.what}, so that none can continue"
            )
        elif len(absent) <= len(inside):
            self._disagree(absent[0], f"it returned without entering {call.what}, in which {_wait(inside)}")
        else:
            self._disagree(waiting[0], f"it waits in {call.what}, which {name_ranks(absent)} never entered")

    def _members(self, call: Call) -> tuple[int, ...]:
        return call.members or tuple(range(self.size))

    def _absent(self, call: Call) -> list[int]:
        """The ranks of a call's group that do not wait in it."""
        return [
            r
            for r in self._members(call)
            if r not in self._waiting or self._members(self._waiting[r]) != self._members(call)
        ]

    def _check_agreement(self, calls: Mapping[int, Call]) -> None:
        kinds = [call.agreement for call in calls.values()]
        usual = max(kinds, key=kinds.count)  # the first of those that most ranks agree on
        other = list(calls)[kinds.index(usual)]
        for rank, call in calls.items():
            if call.agreement != usual:
                self._disagree(rank, f"it entered {call.what} where rank {other} entered {calls[other].what}")
                raise Abandoned

    def _disagree(self, rank: int, message: str) -> None:
        self.fail(rank, f"CollectiveError: {message}", self.stack(rank))


def _wait(ranks: Sequence[int]) -> str:
    return f"{name_ranks(ranks)} wait{'s' if len(ranks) == 1 else ''}"


class LocalGroup(Group):
    """One rank's collectives, by turns. They are not timed: the time of a call holds the other ranks' turns."""

    timed = False
    cpu_seconds = staticmethod(time.thread_time)

    def __init__(self, rank: int, turns: Turns) -> None:
        super().__init__(rank, turns.size)
        self.turns = turns

    def _all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        def combine(calls: Sequence[Call]) -> list[torch.Tensor]:
            total = ring_sum([call.tensor.reshape(-1) for call in calls])
            return [total.clone().view(call.tensor.shape) for call in calls]

        return self._meet("all_reduce", x, combine)

    def _all_gather(self, x: torch.Tensor, dim: int) -> torch.Tensor:
        def combine(calls: Sequence[Call]) -> list[torch.Tensor]:
            full = torch.cat([call.tensor for call in calls], dim=dim)
            return [full.clone() for _ in calls]

        return self._meet("all_gather", x, combine, dim)

    def _reduce_scatter(self, x: torch.Tensor, dim: int) -> torch.Tensor:
        """Sum each slice by itself, as gloo runs one ring per slice."""

        def combine(calls: Sequence[Call]) -> list[torch.Tensor]:
            slices = zip(*(call.tensor.chunk(self.size, dim=dim) for call in calls), strict=True)
            return [ring_sum([part.reshape(-1) for part in parts]).view(parts[0].shape) for parts in slices]

        return self._meet("reduce_scatter", x, combine, dim)

    def _broadcast(self, x: torch.Tensor, src: int) -> torch.Tensor:
        def combine(calls: Sequence[Call]) -> list[torch.Tensor]:
            return [calls[src].tensor.clone().view(call.tensor.shape) for call in calls]

        return self._meet("broadcast", x, combine, src)

    def _all_to_all(self, x: torch.Tensor, split_dim: int, concat_dim: int) -> torch.Tensor:
        def combine(calls: Sequence[Call]) -> list[torch.Tensor]:
            parts = zip(*(call.tensor.chunk(self.size, dim=split_dim) for call in calls), strict=True)
            return [torch.cat(part, dim=concat_dim) for part in parts]

        return self._meet("all_to_all", x, combine, split_dim, concat_dim)

    def _meet(self, kind: str, x: torch.Tensor, combine: Combine, *detail: int) -> torch.Tensor:
        exchange = Exchange(members=self.members, axis=self.axis)
        what = collective(kind, self.size, tuple(x.shape), x.dtype, exchange)
        number = self.members[self.rank] if self.members else self.rank
        return self.turns.meet(number, Call(what=what, tensor=x, detail=detail), combine)


def ring_sum(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """The sum over ranks, added in the order and rounded as often as by gloo's ring (gloo/allreduce.cc, RING).

    The ring cuts the tensor into segments, at least two per rank and none above RING_SEGMENT_BYTES, all of the same
    rounded-up length. Rank k - 1 sends its segments of chunk k to rank k - 2, which adds its own, and so on to rank k.

    Args:
        parts: in the order of ranks; each (elements,), of one dtype.

    Returns:
        (elements,), in the same dtype.
    """
    size, count = len(parts), parts[0].numel()
    most = max(1, RING_SEGMENT_BYTES // parts[0].element_size())
    per_rank = max(2, math.ceil(math.ceil(count / most) / size))
    chunk = math.ceil(count / (per_rank * size)) * per_rank
    total = torch.empty_like(parts[0])
    for k, start in enumerate(range(0, count, max(1, chunk))):
        piece = slice(start, start + chunk)
        running = parts[k - 1][piece].clone()
        for step in range(2, size + 1):
            running += parts[k - step][piece]
        total[piece] = running
    return total
