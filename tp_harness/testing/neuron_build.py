"""Building a module on NeuronCores through neuronx-distributed's (NxD's) ModelBuilder, behind build_module.

NxD is imported in a process of its own, which compiles, loads and serves the model: the Neuron runtime has one world
size per process and holds its cores until the process ends, so every build gets a fresh one.

Sources: neuronx_distributed 0.17 and 0.18 (trace/model_builder.py) and
neuronx_distributed_inference.utils.testing. tests/recorded/nxd_signatures.json holds the signatures called here.

Not covered: pipeline, expert and data parallelism. Never run on a NeuronCore.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from ..errors import UsageError
from ..libraries.neuronx_distributed_private import as_traced
from ..libraries.torch_private import NO_PROCESS_GROUP
from ..neuron.core_allocation import job_environment
from ..neuron.devices import read_machine
from ..neuron.environment import dangers, is_on
from ..nxd import CPU_MODE, require, require_installed
from ..nxd.traced import NxDGroup, StateDict, make_traced, rank_data
from ..parallel.group import TorchGroup, use_group
from ..parallel.placements import Replicate
from .module_server import Made, ShardedModule

# What a build takes from a job's environment; the rest is ModelBuilder's business.
_TAKEN = (
    "NEURON_RT_VISIBLE_CORES",
    "NEURON_RT_ROOT_COMM_ID",
    "NEURON_RT_STOCHASTIC_ROUNDING_EN",
    "NEURON_RT_EXEC_TIMEOUT",
)
_LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID")


@dataclass(frozen=True, kw_only=True)
class Order:
    """What build_module was asked for; fields as its arguments, and `load` gives the full state dict."""

    make: Callable[[], nn.Module]
    name: str
    example_inputs: list[tuple[torch.Tensor, ...]]
    tp_degree: int
    load: Callable[[], StateDict]
    compiler_args: str | None
    compiler_workdir: str | None
    priority_model_idx: int | None
    logical_nc_config: int
    dry_run: bool

    def builder_arguments(self, ranked: StateDict, workdir: str) -> dict[str, Any]:
        """ModelBuilder's arguments. Its loader gives a new mapping each time, because NxD changes the one it gets."""
        return {
            "router": None,
            "tp_degree": self.tp_degree,
            "world_size": self.tp_degree,
            "local_ranks_size": self.tp_degree,
            "checkpoint_loader": lambda: {**self.load(), **ranked},
            "compiler_workdir": workdir,
            "logical_nc_config": self.logical_nc_config,
        }


class BuiltModel:
    """A model that NxD compiled and loaded, in a process of its own: full inputs in, rank 0's outputs out.

    Use it as a context manager, or call `close`, to free its cores; otherwise they are freed with this object.
    """

    def __init__(self, served: ShardedModule, tp_degree: int) -> None:
        self.served, self.tp_degree = served, tp_degree

    def __call__(self, *inputs: torch.Tensor) -> Any:
        """The outputs on rank 0 for these full inputs, in the module's own shapes and dtypes."""
        return self.served(*inputs)

    def close(self) -> None:
        """End the process, which frees the cores."""
        self.served.close()

    def __enter__(self) -> BuiltModel:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def build_environment(tp_degree: int) -> dict[str, str]:
    """The environment of a build on `tp_degree` ranks: the first cores that are free, and a port of their own.

    Raises:
        UsageError: NxD is not installed, there are no such cores, or the environment would make its numbers those of
            another program.
    """
    for sentence in dangers(os.environ):
        raise UsageError(sentence)
    if is_on(os.environ.get(CPU_MODE, "")):
        raise UsageError(
            f"{CPU_MODE} is {os.environ[CPU_MODE]!r}, which keeps neuronx-distributed on the CPU: unset it to build on "
            "NeuronCores, or set PJRT_DEVICE=CPU to build on gloo ranks."
        )
    require_installed()
    try:
        job = job_environment(os.environ, read_machine(), tp_degree, option="tp_degree")
    except UsageError as error:
        if "PYTEST_CURRENT_TEST" not in os.environ:
            raise
        raise UsageError(f"{error} Under pytest, @pytest.mark.tp({tp_degree}) gives a test its cores.") from None
    return {name: job[name] for name in _TAKEN}


def build(order: Order, environment: Mapping[str, str]) -> BuiltModel | None:
    """Trace, compile and load a module on NeuronCores by NxD's ModelBuilder; None if it is a dry run.

    Raises:
        UsageError: NxD cannot be imported, or the module calls torch.distributed itself.
        ShardedModuleError: it could not be built; the message holds why.
    """
    served = ShardedModule(partial(compile_here, order, environment), 1, Replicate())
    if order.dry_run:
        served.close()
        return None
    return BuiltModel(served, order.tp_degree)


class Compiled(nn.Module):
    """What NxD built, called outside of inference mode, whose tensors NxD cannot track."""

    def __init__(self, model: Callable[..., Any], workdir: TemporaryDirectory[str]) -> None:
        super().__init__()
        self.model, self.workdir = [model], workdir  # in a list: no submodule, which would be switched to eval

    def forward(self, *inputs: torch.Tensor) -> Any:
        """The outputs for these full inputs, in the module's own shapes and dtypes."""
        with torch.inference_mode(False):
            return self.model[0](*(x.clone() for x in inputs))


def compile_here(order: Order, environment: Mapping[str, str], _group: TorchGroup) -> Made:
    """Build the module in this process, which then serves it.

    Raises:
        UsageError: NxD cannot be imported, or the module calls torch.distributed itself.
    """
    for name in _LAUNCHER:  # this process's own rank in the launcher: to torch_xla it would mean torchrun
        os.environ.pop(name, None)
    os.environ.update(environment)
    dist.destroy_process_group()
    require()
    try:
        with torch.inference_mode(False):
            return Made(module=_compile(order))
    except (RuntimeError, ValueError) as error:
        if NO_PROCESS_GROUP not in str(error):
            raise
        raise UsageError(
            "the module calls torch.distributed itself, of which ModelBuilder's trace knows nothing: use "
            "tp_harness.current_group(), or neuronx_distributed.parallel_layers.mappings."
        ) from error


def _compile(order: Order) -> nn.Module:
    from neuronx_distributed.trace import ModelBuilder  # noqa: PLC0415
    from neuronx_distributed.trace.model_builder import BaseModelInstance  # noqa: PLC0415

    with as_traced(order.tp_degree):
        ranked = rank_data(order.make, order.tp_degree)
    own_workdir = TemporaryDirectory(prefix="tp-harness-")
    builder = ModelBuilder(**order.builder_arguments(ranked, order.compiler_workdir or own_workdir.name))
    builder.add(
        key=order.name,
        model_instance=BaseModelInstance(
            partial(make_traced, order.make, ranked, order.tp_degree), input_output_aliases={}
        ),
        example_inputs=order.example_inputs,
        compiler_args=order.compiler_args,
        priority_model_idx=order.priority_model_idx,
    )
    with use_group(NxDGroup(order.tp_degree)):
        model = builder.trace(initialize_model_weights=True, dry_run=order.dry_run)
    if order.dry_run:
        return nn.Identity()
    model.nxd_model.initialize_with_saved_weights(start_rank_tensor=torch.tensor([0]))
    return Compiled(model, own_workdir)
