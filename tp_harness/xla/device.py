"""A module's call as one compiled program that all ranks share: traced, compared, checked, and only then run.

torch-xla compiles a program per rank where their traces differ. On Trn1 that means up to 32 compilations and ranks that
disagree about their collectives; on virtual cores, a hang. So ranks compare the hashes of their graphs first.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch_xla
from torch_xla.debug import metrics

from ..libraries import torch_xla_private as private
from ..libraries.torch_private import leaves
from ..ranks.device import Device, GraphFinding, Movable, Result
from ..ranks.rank_files import Tensors
from ..results.from_json import from_json
from ..results.result import Program, ProgramCollective, to_json
from . import hlo
from .graph_diff import difference, short
from .rendezvous import Meets, awaited

_LIBRARIES = ("/torch/", "/torch_xla/", "/tp_harness/case/taps.py", "/tp_harness/ranks/rank.py", "/tp_harness/xla/")


class XLADevice(Device):
    """The device of `rank` of `size`; the ranks are threads or processes that share `meeting`."""

    eager = False

    def __init__(self, rank: int, size: int, meeting: Meets) -> None:
        self.rank, self.size, self.meeting = rank, size, meeting
        self.device = torch_xla.device()
        self._compiled: Counter[str] = Counter()  # by program; a second draw finds it compiled

    def put(self, value: Movable) -> Movable:
        """Copy a tensor, or the parameters of a module, to the device; shapes and dtypes stay."""
        return value.to(self.device)

    def run(self, forward: Callable[[], Tensors]) -> tuple[Tensors, Program]:
        """Trace `forward` on every rank, check that all have the same program, compile it once, run it.

        Returns:
            Its tensors copied to the CPU, same shapes and dtypes; and the program.

        Raises:
            GraphFinding: the traces differ, one needs a value before it is whole, or a collective cannot run.
        """
        left = _left_device()
        traced = self._trace(forward)
        tensors = list(traced.values())
        program = Program(
            fingerprint=self._agree(forward, tensors), collectives=self._collectives(tensors), compiles=0, fallbacks=()
        )
        problem = hlo.cannot_run(program.collectives, self.size)
        if problem:
            raise GraphFinding(problem, program)
        compiles = self._execute(tensors)
        outputs = awaited(lambda: {name: tensor.cpu() for name, tensor in traced.items()})
        ends = self.meeting.exchange(self.rank, (compiles, _left_device() - left))  # and all ranks have ended
        self._compiled[program.fingerprint] += sum(count for count, _ in ends)
        fallbacks = tuple(sorted({name for _, names in ends for name in names}))
        program = replace(program, compiles=self._compiled[program.fingerprint], fallbacks=fallbacks)
        return outputs, program

    def finish(self, result: Result) -> Result:
        """Run the program that computes the tensors (of any shape) in `result`, wait for it, return `result`."""
        tensors = [leaf for leaf in leaves(result) if isinstance(leaf, torch.Tensor)]
        self._execute(tensors)
        awaited(lambda: private.wait_for_programs(str(self.device)))
        return result

    def warm_up(self, forward: Callable[[], Any]) -> None:
        """Compile and run `forward` once."""
        self.finish(forward())

    def _trace(self, forward: Callable[[], Tensors]) -> Tensors:
        """Trace `forward`: its outputs as lazy tensors that are not computed yet.

        Raises:
            GraphFinding: on some rank Python needed the value of a tensor meanwhile.
        """
        self.meeting.exchange(self.rank, None)  # the switch is the process's: no rank executes now
        private.allow_execution(False)
        private.forget_collectives(str(self.device))
        traced, problem = {}, None
        try:
            traced = forward()
        except RuntimeError as error:
            if private.EXECUTION_REFUSED not in str(error):
                raise
            problem = f"rank {self.rank} of {self.size} needs the value of a tensor in Python at {_place(error)}"
        problems = [text for text in self.meeting.exchange(self.rank, problem) if text]
        if problems:
            raise GraphFinding(
                f"{problems[0]}: the program ends there, and what follows depends on data. Ranks that branch "
                "differently do not meet in their collectives; write it without a branch (torch.where, a mask)"
            )
        return traced

    def _agree(self, forward: Callable[[], Tensors], tensors: list[torch.Tensor]) -> str:
        """The hash of the graph that all ranks share.

        Raises:
            GraphFinding: the hashes differ; the text says from which Python line on.
        """
        hashes = self.meeting.exchange(self.rank, private.graph_hash(tensors))
        odd = next((rank for rank, other in enumerate(hashes) if other != hashes[0]), None)
        if odd is None:
            return hashes[0]
        texts = self.meeting.exchange(self.rank, self._debug_text(forward) if self.rank in (0, odd) else "")
        raise GraphFinding(
            f"rank-dependent graph: {self.size} ranks trace {len(set(hashes))} different programs; on Trn1 each would "
            f"be compiled, or rank 0's given to all, with its numbers in it. {difference(texts[0], texts[odd], 0, odd)}"
        )

    def _debug_text(self, forward: Callable[[], Tensors]) -> str:
        """Trace `forward` again; returns its HLO text with Python lines."""
        with self.meeting.turn, private.python_lines_in_programs():  # the switch is the process's
            private.forget_collectives(str(self.device))
            return private.hlo_text(list(forward().values()))

    def _collectives(self, tensors: list[torch.Tensor]) -> tuple[ProgramCollective, ...]:
        """The program's collectives, from rank 0's HLO, as the graphs are equal."""
        calls = hlo.collectives(private.hlo_text(tensors), self.size) if self.rank == 0 else ()
        shared = self.meeting.exchange(self.rank, to_json(calls))[0]
        return tuple(from_json(ProgramCollective, call) for call in shared)

    def _execute(self, tensors: list[torch.Tensor]) -> int:
        """Start the program; returns the number of compilations that took.

        One rank at a time: the first compiles and the others find it done. Compiled twice, a program's collectives
        would carry different numbers and never meet.
        """
        private.allow_execution(True)
        with self.meeting.turn:
            before = self.compiled()
            private.start_program(tensors, str(self.device))
            return self.compiled() - before

    def compiled(self) -> int:
        """The number of programs that this process has compiled so far."""
        data = metrics.metric_data("CompileTime")
        return int(data[0]) if data else 0


def _left_device() -> Counter[str]:
    """By name, how often this process ran an operation on the host that torch-xla has no lowering for."""
    return Counter({n: metrics.counter_value(n) for n in metrics.counter_names() if n.startswith("aten::")})


def _place(error: BaseException) -> str:
    """The last frame of a traceback that lies in a user's or a family's module, as text."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not any(part in f.filename for part in _LIBRARIES)] or frames
    return f"{short(own[-1].filename, own[-1].lineno)} (`{own[-1].line}`)"
