"""What one rank does: build its shard of each module, run it, and write down tensors and facts.

The same code runs on every backend; a rank gives no opinion on its results.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from ..arithmetic.casts import cast, cast_tensor
from ..case.case import Case, Tensors
from ..case.plan import check_names, check_submodules, local_placement, planned
from ..case.routing import Lock, routing
from ..case.state_dict import load_weights, weights_of
from ..case.taps import tap_key, tapping
from ..checkpoint.checkpoint import Checkpoint
from ..errors import doing
from ..faults import injected
from ..models import families
from ..parallel import dtensors
from ..parallel.collective_recorder import CollectiveRecorder
from ..parallel.group import Group, use_group
from ..parallel.placements import Replicate, same_bits
from ..results.result import Collective, Forwards, to_json
from .device import Device, GraphFinding
from .excerpt import of_flat, of_rows
from .job import Job, Task, read_job
from .measure import PeakMemory, Stopwatch, count_flops
from .module_state import remembered
from .rank_files import digest, put_aside, write_output

STATEFUL = "stateful"

# The facts of a dtype whose program never ran.
NOTHING: dict[str, Any] = {
    "aside": {},
    "parameters": {},
    "placed": {},
    "collectives": [],
    "forwards": to_json(Forwards(wall_s=(), cpu_s=(), collective_s=(), warm=False)),
    "flops": None,
    "begin_bytes": 0,
    "peak_bytes": 0,
}


def run_job(
    path: Path,
    group: Group,
    *,
    core: str,
    begin: Callable[[str], None] = lambda key: None,
    device: Device | None = None,
) -> None:
    """Run every task of the job in order; each leaves one file per rank, complete when it appears.

    `core` names where the rank runs; `begin` is told the key of each task, before it; `device` is where modules run,
    by default the CPU.
    """
    device = device or Device()
    job, config_hash = read_job(path)
    checkpoints = [Checkpoint(map(Path, paths)) for paths in job.weights]
    with use_group(group), torch.no_grad():
        for task in job.tasks:
            begin(job.subject.step(task))
            facts: dict[str, Any] = {"rank": group.rank, "core": core, "config_hash": config_hash, "aside": {}}
            tensors: dict[str, torch.Tensor] = {}
            started = time.perf_counter(), group.cpu_seconds()
            for dtype in job.dtypes_of(task):
                try:
                    of_dtype, facts[dtype] = _run(job, task, dtype, group, checkpoints[task.draw], device=device)
                except GraphFinding as finding:  # the same on all ranks; there is no output to judge
                    of_dtype, facts[dtype] = {}, NOTHING | {"finding": str(finding), "program": finding.program}
                tensors |= of_dtype
                facts["aside"] |= facts[dtype].pop("aside")
            facts["wall_s"] = time.perf_counter() - started[0]
            facts["cpu_s"] = group.cpu_seconds() - started[1]
            write_output(job.output_path(task, group.rank), tensors, facts)


def _run(
    job: Job, task: Task, dtype: str, group: Group, checkpoint: Checkpoint, *, device: Device
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and facts of one dtype: locked to the oracle's routing, and unlocked where that would differ."""
    memory, watch = PeakMemory(), Stopwatch(group, group.cpu_seconds)
    case = job.subject.case(task, dtype=dtype, tp=group.size)
    case = injected(task.fault, case, task.place, task.rank)
    full_inputs, locks = read_inputs(job.inputs_path(task))
    full_inputs = tuple(of_rows(x, task.tokens) for x in full_inputs)
    inputs = tuple(map(device.put, shard_inputs(case, full_inputs, getattr(torch, dtype), group)))
    chosen = {name: of_flat(lock.chosen, task.tokens, job.subject.batch_size) for name, lock in locks.items()}
    rows = {name: token_rows(case, full_inputs, len(choice), group) for name, choice in chosen.items()}
    locks = {name: Lock(device.put(chosen[name]), lock.experts, rows[name]) for name, lock in locks.items()}
    module, parameters = build(case, checkpoint, getattr(torch, dtype), group)
    module = device.put(module)
    if job.kernels == "nki":
        for family in families():
            family.use_kernels(module)
    restore = (lambda: None) if case.lazy or not (job.repeats or job.unlocked) else remembered(module)
    stateful = bool(job.repeats) and is_stateful(job.inputs_path(task))
    read = dtensors.Reader()

    def call() -> Tensors:
        with doing(f"forward of {case.name} in {dtype}"):
            outputs = as_tuple(module(*(x.clone() for x in inputs)))  # a module may write to its inputs
        return tuple(read(f"output.{i}", output) for i, output in enumerate(outputs))

    def forward() -> tuple[Tensors, tuple[Collective, ...]]:
        return _record_calls(case, group, call)

    def again() -> tuple[Tensors, tuple[Collective, ...]]:
        if stateful:  # it begins with what the first one began with
            restore()
        return forward()

    calls: tuple[Collective, ...] = ()
    first: list[str] = []  # the outputs that are judged
    unlocked_routers: list[str] = []

    def locked() -> dict[str, torch.Tensor]:
        nonlocal calls
        with (
            tapping(module, case.watched if job.taps else {}, read) as taps,
            routing(module, case.routers, locks) as routed,
        ):
            outputs, calls = watch.time(forward)
        unlocked_routers.extend(routed.unlocked)
        if job.repeats and device.eager:
            first.extend(map(digest, outputs))
        tapped = {tap_key(dtype, name): tensor.contiguous() for name, tensor in taps.items()}
        return _named(f"{dtype}.locked", outputs, routed.tensors) | tapped

    def unlocked() -> dict[str, torch.Tensor]:
        restore()
        with routing(module, case.routers) as routed:
            outputs = call()
        return _named(f"{dtype}.unlocked", outputs, routed.tensors)

    tensors, program = device.run(locked)
    if job.unlocked and case.routing and task.draw == 0 and dtype != "float32":
        tensors |= device.run(unlocked)[0]
    tensors, aside = put_aside(job.output_path(task, group.rank), tensors)
    flops, changed = None, None
    if job.repeats:
        with routing(module, case.routers, locks):
            device.warm_up(again)
            last = watch.repeat(lambda: device.finish(again()), job.repeats)
            changed = [i for i, x in enumerate(last[: len(first)]) if digest(x) != first[i]]
            flops = count_flops(again) if job.kernels == "torch" else None  # kernels do not pass torch's dispatcher
    return tensors, {
        "aside": aside,
        "parameters": parameters,
        "placed": dtensors.to_facts(read.placements),
        "collectives": to_json(watch.timed(calls)),
        "forwards": to_json(watch.forwards(warm=job.repeats > 0, eager=device.eager)),
        "flops": flops,
        "changed": changed,
        "begin_bytes": memory.begin_bytes,
        "peak_bytes": memory.peak_bytes(),
        "program": program,
        "unlocked": unlocked_routers,
        "rows": {name: of_rank.tolist() for name, of_rank in rows.items() if of_rank is not None},
    }


def build(case: Case, checkpoint: Checkpoint, dtype: torch.dtype, group: Group) -> tuple[nn.Module, dict[str, Any]]:
    """This rank's module with its shards loaded, and for each parameter what the rank really holds.

    Raises:
        PlanError: a parameter whose placement the plan does not say, or whose shard has another shape.
    """
    side = f"the sharded module of {case.name}"
    with doing(f"sharded of {case.name}, called without arguments"):
        module = case.make(case.sharded, dtype)
    local = weights_of(module, side)
    check_names(case, local, checkpoint.names)
    if not case.lazy:
        check_submodules(case, "sharded module", module)
    case = replace(case, plan=planned(case, local, group.size))
    full = {name: checkpoint.tensor(case.prefix + name) for name in local}
    shards: dict[str, torch.Tensor] = {}
    for name, tensor in full.items():
        placement = local_placement(case, name, tensor.shape, dtensors.local(local[name]).shape, group.size)
        with doing(f"shard of {placement}, called for {name}"):
            shards[name] = dtensors.as_placed(placement.shard(tensor, group.rank, group.size), local[name])
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers() if name in shards}
    load_weights(module, shards, side, assign=case.lazy)
    held = {name: _held(dtensors.local(tensor), full[name]) for name, tensor in weights_of(module, side).items()}
    for name, placement in dtensors.placements(local).items():
        held[name] |= {"placed": dtensors.to_facts({name: placement})}
    for name, buffer in () if case.lazy else buffers.items():
        held[name]["rebuilt"] = same_bits(dtensors.local(buffer), dtensors.local(module.get_buffer(name)))
    module = (module if case.lazy else cast(module, dtype)).eval()
    with doing(f"edit of {case.name}"):
        case.edit(module, group)
    return module, held


def shard_inputs(case: Case, full_inputs: Tensors, dtype: torch.dtype, group: Group) -> Tensors:
    """What this rank's module is given: its shard of each input, floating-point ones in `dtype`."""
    shards = (case.input_placement(i).shard(x, group.rank, group.size) for i, x in enumerate(full_inputs))
    return tuple(cast_tensor(x, dtype) for x in shards)


def token_rows(case: Case, full_inputs: Tensors, tokens: int, group: Group) -> torch.Tensor | None:
    """Which of a router's tokens this rank has, where the first input's tokens are shared out; None for all."""
    placement = case.input_placement(0) if full_inputs else Replicate()
    if isinstance(placement, Replicate):
        return None
    for shape in (full_inputs[0].shape, (*full_inputs[0].shape[:-1], 1)):  # ids, or vectors
        if math.prod(shape) == tokens:
            rows = placement.shard(torch.arange(tokens).view(shape), group.rank, group.size).flatten()
            return rows if len(rows) < tokens else None
    return None


def write_inputs(path: Path, inputs: Tensors, locks: Mapping[str, Lock], *, stateful: bool = False) -> None:
    """Write the full inputs, what every router shall choose by tap name, and whether the reference keeps a state."""
    tensors = {f"input.{i}": x.contiguous() for i, x in enumerate(inputs)}
    for name, lock in locks.items():
        tensors |= {f"lock.{name}": lock.chosen.contiguous(), f"experts.{name}": torch.tensor(lock.experts)}
    save_file(tensors, path, metadata={STATEFUL: "yes"} if stateful else None)


def is_stateful(path: Path) -> bool:
    """Whether the reference gives other outputs when it is called again, and so may a rank's module."""
    with safe_open(path, framework="pt") as file:
        return STATEFUL in (file.metadata() or {})


def read_inputs(path: Path) -> tuple[Tensors, Mapping[str, Lock]]:
    """What `write_inputs` wrote."""
    tensors = load_file(path)
    inputs = tuple(tensors[f"input.{i}"] for i in range(sum(name.startswith("input.") for name in tensors)))
    names = [name.removeprefix("lock.") for name in tensors if name.startswith("lock.")]
    return inputs, {name: Lock(tensors[f"lock.{name}"], int(tensors[f"experts.{name}"])) for name in names}


def as_tuple(outputs: object) -> Tensors:
    """A module's outputs as a tuple, whether it returns one tensor or several; what is None is left out.

    Raises:
        TypeError: it returned something else.
    """
    if isinstance(outputs, torch.Tensor):
        return (outputs,)
    tensors: list[torch.Tensor] = []
    for x in outputs if isinstance(outputs, (tuple, list)) else [outputs]:
        if isinstance(x, torch.Tensor):
            tensors.append(x)
        elif x is not None:
            raise TypeError(f"the module returned a {type(x).__name__}; a tensor or a tuple of tensors is needed")
    return tuple(tensors)


def _record_calls(case: Case, group: Group, run: Callable[[], Tensors]) -> tuple[Tensors, tuple[Collective, ...]]:
    """The outputs, and the collectives issued: by the group, or (user's modules) by whatever means."""
    group.take_calls()
    if case.lazy:
        return run(), group.take_calls()
    with CollectiveRecorder() as recorder:
        outputs = run()
    return outputs, tuple(recorder.calls) or group.take_calls()  # not every group's calls reach torch's dispatcher


def _held(tensor: torch.Tensor, full: torch.Tensor) -> dict[str, Any]:
    """What identifies the bits a rank holds: the place in the mapped checkpoint, or else a digest."""
    size = tensor.numel() * tensor.element_size()
    kind = str(tensor.dtype).removeprefix("torch.")
    facts: dict[str, Any] = {"shape": list(tensor.shape), "dtype": kind, "bytes": size}
    if tensor.untyped_storage().data_ptr() == full.untyped_storage().data_ptr() and tensor.numel():
        return facts | {"view": [tensor.storage_offset(), *tensor.stride()]}
    return facts | {"digest": digest(tensor)}


def _named(variant: str, outputs: Tensors, record: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    named = {f"output.{i}": output for i, output in enumerate(outputs)} | dict(record)
    # clone: two names may share memory, which a safetensors file cannot
    return {f"{variant}.{name}": tensor.detach().clone().contiguous() for name, tensor in named.items()}
