"""The program of one rank: build its shard of each module, run it, and write down tensors and a report.

The same code runs on every backend; a rank does not judge its results.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch

from ..arithmetic.exact import Exact
from ..case.case import Case
from ..case.module_state import remembered
from ..case.routing import Lock, routing
from ..case.taps import tapping
from ..checkpoint.checkpoint import Checkpoint
from ..errors import doing
from ..faults import injected
from ..models import families
from ..parallel import dtensors
from ..parallel.collective_recorder import CollectiveRecorder
from ..parallel.group import Group, use_group
from ..parallel.mesh import mesh_of, use_mesh
from ..parallel.on_rank import OnRank
from ..results.result import Collective
from ..results.tensor_names import BEGIN
from .build import arithmetic_of, build
from .device import Device, GraphFinding
from .grafts import Grafts
from .job import Job, Task, read_job
from .measure import PeakMemory, Stopwatch, count_flops
from .padding import with_filled_runs
from .rank_files import Kept, as_pairs, digest, put_aside, write_output
from .rank_inputs import read_inputs, shard_inputs, token_rows
from .rank_report import DtypeRun, RankReport, TensorKey, Variant

Calls = tuple[Collective, ...]
Named = dict[str, torch.Tensor]  # what a module returned and left
Timed = tuple[Named, Calls]  # and the collectives it issued


def run_job(
    path: Path,
    group: Group,
    *,
    core: str,
    begin: Callable[[str], None] = lambda key: None,
    device: Device | None = None,
) -> None:
    """Run every task of the job in order; each leaves one file per rank, complete when it appears.

    Args:
        path: of the job file.
        group: this rank's.
        core: the name of the place where the rank runs, for its report.
        begin: called with the step's name before each task.
        device: where modules run; None is the CPU.

    Raises:
        PlanError: a module that the plan does not fit; a module's own exceptions pass.
    """
    device = device or Device()
    job, config_hash = read_job(path)
    checkpoints = [Checkpoint(map(Path, paths)) for paths in job.weights]
    with use_group(group), torch.no_grad():
        for task in job.tasks:
            begin(job.subject.step(task))
            started = time.perf_counter(), group.cpu_seconds()
            found = {
                dtype: _run(job, task, dtype, group=group, checkpoint=checkpoints[task.draw], device=device)
                for dtype in job.dtypes_of(task)
            }
            report = RankReport(
                rank=group.rank,
                core=core,
                config_hash=config_hash,
                wall_s=time.perf_counter() - started[0],
                cpu_s=group.cpu_seconds() - started[1],
                runs={dtype: run for dtype, (_, run) in found.items()},
            )
            kept = {key: value for of_dtype, _ in found.values() for key, value in of_dtype.items()}
            write_output(job.output_path(task, group.rank), kept, report)


def _run(
    job: Job, task: Task, dtype: str, *, group: Group, checkpoint: Checkpoint, device: Device
) -> tuple[Kept, DtypeRun]:
    """Run a task in one dtype, on the mesh of its case; its module is freed when this returns."""
    axes = job.subject.case(task, dtype=dtype, tp=group.size).axes(group.size)
    runner = partial(DtypeRunner, job, task, dtype, group=group, checkpoint=checkpoint, device=device)
    try:
        with use_mesh(mesh_of(axes, group)):
            return with_filled_runs(runner, job, task, dtype, group=group, checkpoint=checkpoint)
    except GraphFinding as finding:  # the same on all ranks; there is no output to judge
        return {}, DtypeRun(finding=str(finding), program=finding.program)


class DtypeRunner:
    """A task in one dtype on one rank: the module, its inputs, and its runs; `change` gives another case to run."""

    def __init__(
        self,
        job: Job,
        task: Task,
        dtype: str,
        *,
        group: Group,
        checkpoint: Checkpoint,
        device: Device,
        change: Callable[[Case], Case] = lambda case: case,
    ) -> None:
        self.job, self.task, self.dtype, self.group, self.device = job, task, dtype, group, device
        self.memory, self.watch, self.read = PeakMemory(), Stopwatch(group, group.cpu_seconds), dtensors.Reader()
        case = job.subject.case(task, dtype=dtype, tp=group.size)
        self.case = case = change(injected(task.fault, case, task.place, task.rank))
        self.arithmetic = arithmetic = arithmetic_of(job, task, dtype)
        self.exact = isinstance(arithmetic, Exact)
        whole = read_inputs(job.inputs_path(task)).map(arithmetic.draw)
        with arithmetic.computing():
            given = whole.first(task.tokens, job.subject.batch_size)
            shards = shard_inputs(case, given, arithmetic.dtype, group)
        self.calls = given.calls(case).changed(lambda name, _drawn: device.put(shards[name]))
        self.stateful = bool(job.repeats) and given.stateful
        self.rows = {
            name: token_rows(case, given.inputs, len(lock.chosen), group) for name, lock in given.locks.items()
        }
        self.tokens = {name: len(lock.chosen) for name, lock in given.locks.items()}
        self.locks = {
            name: Lock(device.put(lock.chosen), lock.experts, self.rows[name])
            for name, lock in given.locks.items()
            if not self.exact or name in task.grafts  # shadows choose as the oracle does
        }
        module, self.parameters = build(case, checkpoint, arithmetic, group, job.tied)
        self.module = device.put(module)
        if job.kernels == "nki":
            for family in families():
                family.use_kernels(self.module)
        again = case.may_keep_state and (job.repeats or job.unlocked) and not self.exact
        self.restore = remembered(self.module) if again else lambda: None
        self.unlocked_routers: tuple[str, ...] = ()
        self.results: tuple[str, ...] = ()
        self.unawaited: tuple[str, ...] = ()

    def run(self) -> tuple[Kept, DtypeRun]:
        """Run locked to the oracle's routing; unlocked, where the job asks for it; and as many repeats as it says.

        Returns:
            The tensors by key, shapes and dtypes as in `locked`, large ones as files; and the report on the run.

        Raises:
            GraphFinding: a device's program that cannot run.
        """
        with self.arithmetic.computing():
            tensors, program = self.device.run(self.locked)
        tensors = self._split(tensors)
        calls, first = self.watch.calls[-1], self._digests(tensors)
        if self.job.unlocked and self.case.routing and self.task.draw == 0 and self.dtype == "bfloat16":
            tensors |= self.device.run(self.unlocked)[0]
        tensors, pairs = as_pairs(tensors)
        kept = put_aside(self.job.output_path(self.task, self.group.rank), tensors)
        del tensors  # the large ones are written down
        flops, changed = self.repeat(first) if self.job.repeats and not self.exact else (None, None)
        return kept, DtypeRun(
            parameters=self.parameters,
            results=self.results,
            pairs=pairs,
            placed=self.read.placed,
            collectives=self.watch.timed(calls),
            unawaited=self.unawaited,
            forwards=self.watch.forwards(warm=self.job.repeats > 0 and not self.exact, eager=self.device.eager),
            flops=flops,
            changed=changed,
            begin_bytes=self.memory.begin_bytes,
            peak_bytes=self.memory.peak_bytes(),
            program=program,
            unlocked=self.unlocked_routers,
            rows={name: tuple(rows.tolist()) for name, rows in self.rows.items() if rows is not None},
            seen=self.arithmetic.seen,
        )

    def locked(self) -> dict[TensorKey, torch.Tensor]:
        """Run the forward that is judged: outputs as the module returns them, routers' (tokens, k or experts), taps."""
        names = [name for name in self.task.grafts if name not in self.locks]
        grafts = Grafts(self.job.right_path(self.task), names, self.case, self.group, self.arithmetic)
        with (
            tapping(self.module, self.case.watched if self.job.taps else {}, self.read, grafts) as taps,
            routing(self.module, self.case.routers, self.locks) as routed,
        ):
            outputs, _calls = self.watch.time(self.forward)
        self.unlocked_routers = tuple(routed.unlocked)
        # a router behind a gather of the sequence has all tokens, although the first input was cut
        whole = (name for name, tokens in self.tokens.items() if len(routed.tensors.get(name, ())) == tokens)
        self.rows |= dict.fromkeys(whole)
        tapped = {TensorKey(self.dtype, "tap", name): tensor.contiguous() for name, tensor in taps.items()}
        return self._named("locked", outputs, routed.tensors) | tapped

    def unlocked(self) -> dict[TensorKey, torch.Tensor]:
        """Run a forward with the module's own routing: tensors of the shapes and dtypes of `locked`, without taps."""
        self.restore()
        with routing(self.module, self.case.routers) as routed:
            outputs = self.call()
        return self._named("unlocked", outputs, routed.tensors)

    def repeat(self, first: Mapping[str, str]) -> tuple[int | None, tuple[str, ...]]:
        """Time further forwards.

        Args:
            first: by name, the digests of the outputs that are judged.

        Returns:
            Floating-point operations of one forward, None with kernels; and the names of the outputs whose bits the
            last forward changed.
        """
        with routing(self.module, self.case.routers, self.locks):
            self.device.warm_up(self.again)
            last = self.watch.repeat(lambda: self.device.finish(self.again()), self.job.repeats)
            changed = tuple(name for name in first if digest(last[name]) != first[name])
            if self.job.kernels != "torch":  # these do not pass torch's dispatcher
                return None, changed
            return count_flops(self.again), changed

    def call(self) -> Named:
        """Make every call of the module once: by name, this rank's data of what it returns and leaves.

        Raises:
            TypeError: the module returned no tensor.
        """
        own = self.calls.changed(lambda _name, x: x.clone())  # a module may write to its inputs
        with doing(f"forward of {self.case.name} in {self.dtype}"):
            needed = not any(isinstance(placement, OnRank) for placement in self.case.outputs)
            return own.run(self.module, self.read, tuple(self.case.state), needed=needed)

    def forward(self) -> Timed:
        """Call the module once, and record its collectives."""
        outputs, calls, unawaited = _record_calls(self.case, self.group, self.call)
        self.unawaited = self.unawaited or unawaited
        return outputs, calls

    def again(self) -> Timed:
        """Run a forward; first restore the module's state, where the reference keeps one."""
        if self.stateful:
            self.restore()
        return self.forward()

    def _split(self, tensors: Mapping[TensorKey, torch.Tensor]) -> dict[TensorKey, torch.Tensor]:
        """The tensors, and those of their residues, each under a key of its own."""
        found: dict[TensorKey, torch.Tensor] = {}
        for key, tensor in tensors.items():
            judged = self._is_result(key) and not key.name.startswith(BEGIN)
            number = tensor.dtype == torch.float64 and not tensor.ndim  # of Python: nothing else here is in float64
            if judged and not number and not self.arithmetic.follows(tensor) and self.arithmetic.seen:
                self.arithmetic.seen.escape(f"{key.name} depends on no parameter or input, as far as was seen")
            found[key], residues = self.arithmetic.split(tensor, exponents=self.job.taps)
            found |= {key.modulo(number): own for number, own in enumerate(residues)}
        return found

    def _digests(self, tensors: Mapping[TensorKey, torch.Tensor]) -> dict[str, str]:
        """Digests of the outputs that are judged; empty where no further forward is compared with them."""
        if not (self.job.repeats and self.device.eager):
            return {}
        return {key.name: digest(x) for key, x in tensors.items() if self._is_result(key)}

    def _is_result(self, key: TensorKey) -> bool:
        """Whether it is what a call of the run that is judged returned or left."""
        return key.variant == "locked" and key.name in self.results

    def _named(
        self, variant: Variant, results: Mapping[str, torch.Tensor], record: Mapping[str, torch.Tensor]
    ) -> dict[TensorKey, torch.Tensor]:
        self.results = tuple(results)
        named = {**results, **record}
        # clone: two names may share memory, which a safetensors file cannot
        return {
            TensorKey(self.dtype, variant, name): tensor.detach().clone().contiguous() for name, tensor in named.items()
        }


def _record_calls(case: Case, group: Group, run: Callable[[], Named]) -> tuple[Named, Calls, tuple[str, ...]]:
    """The outputs; the collectives issued, by the group alone, or, in a user's module, also by torch itself; and a
    sentence on each whose handle nobody waited for.
    """
    group.take_calls()
    if not case.may_use_torch_distributed:
        return run(), group.take_calls(), ()
    with CollectiveRecorder() as recorder:
        outputs = run()
    recorded = tuple(recorder.calls) or group.take_calls()  # not every group's calls reach torch's dispatcher
    return outputs, recorded, recorder.unawaited
