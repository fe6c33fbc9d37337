"""neuronx-distributed (NxD), where it is installed: its ModelBuilder behind build_module, its layers inside cases.

NxD is imported inside functions alone, so that nothing needs it until it is asked for. Where its own sharding
must cut our modules, it finds the attributes it reads (marks.py); what its trace would get wrong is prepared here:

- NxD shards the parameters of its own layer classes only, so a module that holds sharded parameters becomes a
  subclass of NxD's base layer as well, which changes nothing else about it;
- it cuts KV heads but does not replicate them, so the checkpoint's are repeated first;
- it traces one program for all ranks with rank 0's values, so a buffer that differs from rank to rank becomes a
  parameter, of which each rank is given its own piece.

Sources: neuronx_distributed 0.17 and 0.18 (trace/trace.py, trace/model_builder.py, parallel_layers/*) and
neuronx_distributed_inference.utils.testing. tests/recorded/nxd_signatures.json holds the signatures called here.

Not covered: pipeline, expert and data parallelism. Never run on a NeuronCore.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from .errors import UsageError
from .group import Group, current_group, use_group
from .marks import marks, replicate_kv
from .neuron_env import dangers
from .placements import QKVHeads, Shard

StateDict = Mapping[str, torch.Tensor]
MakeModule = Callable[..., nn.Module]
ABSENT = (
    "neuronx-distributed is not installed (or only its placeholder from the public index): install the version of your "
    "SDK from AWS's Neuron package index; docs/trn1.md has the command."
)


def require() -> None:
    """Make sure that NxD can be imported.

    Raises:
        UsageError: it cannot; one sentence with the next step.
    """
    if importlib.util.find_spec("neuronx_distributed") is None:
        raise UsageError(ABSENT)
    try:
        import neuronx_distributed.parallel_layers.parallel_state  # noqa: F401, PLC0415
    except ImportError as error:  # without torch_neuronx or neuronxcc it does not import
        raise UsageError(f"neuronx-distributed is installed but cannot be imported: {error}.") from None


def parallel(factory: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """For a Case whose sharded module is made of NxD's parallel layers: `Case(sharded=nxd.parallel(MyModule), ...)`.

    The module is made with NxD in its CPU mode and all ranks of the run as one tensor-parallel group.

    Raises:
        UsageError: NxD cannot be imported.
    """

    def make() -> nn.Module:
        require()
        os.environ["NXD_CPU_MODE"] = "1"
        from neuronx_distributed.parallel_layers import parallel_state  # noqa: PLC0415

        if parallel_state.model_parallel_is_initialized():  # by an earlier case, perhaps for another degree
            parallel_state.destroy_model_parallel()
        with _groups_of_the_default_backend():
            parallel_state.initialize_model_parallel(tensor_model_parallel_size=current_group().size)
        return factory()

    return make


@contextmanager
def _groups_of_the_default_backend() -> Iterator[None]:
    """Where torch's default group only stands in for ranks, let those that NxD makes do so too.

    In its CPU mode NxD asks for gloo groups by name; real ones would wait for ranks that are not there.
    """
    real = dist.new_group
    if dist.get_backend() == "fake":
        dist.new_group = lambda ranks=None, **_options: real(ranks)
    try:
        yield
    finally:
        dist.new_group = real


class NxDGroup(Group):
    """The tensor-parallel group whose collectives are NxD's, which its trace knows."""

    def __init__(self, size: int) -> None:
        super().__init__(0, size)  # one program for all ranks, traced as rank 0

    def _all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        from neuronx_distributed.parallel_layers import mappings  # noqa: PLC0415

        return mappings.reduce_from_tensor_model_parallel_region(x)

    def _all_gather(self, x: torch.Tensor, dim: int) -> torch.Tensor:
        from neuronx_distributed.parallel_layers import mappings  # noqa: PLC0415

        return mappings.gather_from_tensor_model_parallel_region_with_dim(x, gather_dim=dim % x.ndim)

    def _reduce_scatter(self, x: torch.Tensor, dim: int) -> torch.Tensor:
        from neuronx_distributed.parallel_layers import mappings  # noqa: PLC0415

        return mappings.reduce_scatter_to_tensor_model_parallel_region_with_dim(x, partition_dim=dim % x.ndim)

    def _broadcast(self, x: torch.Tensor, src: int) -> torch.Tensor:
        """Gathered: a broadcast gave zeros on torch-neuronx 2.7 to 2.9 (aws-neuron-sdk#1240)."""
        return self._all_gather(x[None], 0)[src]


def rank_data(make: Callable[[], nn.Module], size: int) -> dict[str, torch.Tensor]:
    """The buffers whose values differ from rank to rank: name -> all ranks' values, joined along dimension 0.

    A scalar counts as one element, which broadcasts alike.
    """
    found: dict[str, torch.Tensor] = {}
    by_rank = []
    for rank in range(size):
        with use_group(Group(rank, size)), torch.device("meta"):
            by_rank.append(dict(make().named_buffers()))
    for name, first in by_rank[0].items():
        values = [buffers[name] for buffers in by_rank]
        if not first.is_meta and not all(torch.equal(value, first) for value in values):
            found[name] = torch.cat([torch.atleast_1d(value) for value in values])
    return found


def prepare(module: nn.Module, ranked: Mapping[str, torch.Tensor], base: type[nn.Module], size: int) -> nn.Module:
    """Make NxD's checkpoint sharding treat the module as its plan says; see the module docstring.

    Args:
        module: a rank's own; its parameters carry the attributes of marks.py.
        ranked: what `rank_data` found.
        base: NxD's BaseParallelLinear.
        size: tp_degree.
    """
    for name in ranked:
        owner, _, leaf = name.rpartition(".")
        holder = module.get_submodule(owner)
        value = getattr(holder, leaf)
        delattr(holder, leaf)
        parameter = nn.Parameter(torch.atleast_1d(value), requires_grad=False)
        for attribute, setting in marks(Shard(0), size).items():
            setattr(parameter, attribute, setting)
        holder.register_parameter(leaf, parameter)
    for child in module.modules():
        own = list(child.parameters(recurse=False))
        if any(getattr(parameter, "tensor_model_parallel", False) for parameter in own):
            if not isinstance(child, base):
                child.__class__ = type(type(child).__name__, (type(child), base), {})
            _repeat_kv_first(child, own, size)
    return module


def _repeat_kv_first(child: nn.Module, own: list[nn.Parameter], size: int) -> None:
    """Give a fused query, key and value projection the hook that NxD calls before it cuts a checkpoint."""
    fused = next((parameter for parameter in own if getattr(parameter, "fused_qkv", False)), None)
    if fused is None or hasattr(child, "preshard_hook"):
        return
    query_rows = fused.num_attention_heads * fused.head_dim  # type: ignore[attr-defined]

    def hook(checkpoint: dict[str, torch.Tensor], key: str) -> bool:
        heads = (checkpoint[key].shape[0] - query_rows) // (2 * fused.head_dim)  # type: ignore[attr-defined]
        if heads < size:
            placement = QKVHeads(fused.num_attention_heads, heads, fused.head_dim)  # type: ignore[attr-defined]
            checkpoint[key] = replicate_kv(checkpoint[key], placement, size)
        return True

    child.preshard_hook = hook  # type: ignore[assignment]
    child.add_bias = getattr(child, "bias", None) is not None  # type: ignore[assignment]


def make_traced(make: Callable[[], nn.Module], ranked: Mapping[str, torch.Tensor], size: int) -> nn.Module:
    """What ModelBuilder calls for a module: ours, with NxD's collectives, ready for NxD's sharding."""
    from neuronx_distributed.parallel_layers.layers import BaseParallelLinear  # noqa: PLC0415

    with use_group(NxDGroup(size)):
        return prepare(make(), ranked, BaseParallelLinear, size)


def builder_arguments(  # the keywords are ModelBuilder's
    *,
    tp_degree: int,
    load: Callable[[], StateDict],
    ranked: StateDict,
    world_size: int | None,
    local_ranks_size: int | None,
    compiler_workdir: str,
    logical_nc_config: int,
) -> dict[str, Any]:
    """What ModelBuilder is constructed with. Its loader gives a new mapping each time: NxD changes what it gets."""
    return {
        "router": None,
        "tp_degree": tp_degree,
        "world_size": world_size,
        "local_ranks_size": local_ranks_size,
        "checkpoint_loader": lambda: {**load(), **ranked},
        "compiler_workdir": compiler_workdir,
        "logical_nc_config": logical_nc_config,
    }


class BuiltModel:
    """A model that NxD compiled and loaded: full inputs in, rank 0's outputs out.

    A context manager, as ShardedModule is; the cores are held until this process ends.
    """

    def __init__(self, model: Callable[..., Any], tp_degree: int, own_workdir: TemporaryDirectory[str]) -> None:
        self.model, self.tp_degree = model, tp_degree
        self._own_workdir = own_workdir  # goes when this object does

    def __call__(self, *inputs: torch.Tensor) -> Any:
        """The outputs for these inputs."""
        return self.model(*inputs)

    def __enter__(self) -> BuiltModel:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Nothing to end before the process does."""


def build(
    module_cls: MakeModule,
    kwargs: Mapping[str, Any],
    example_inputs: list[tuple[torch.Tensor, ...]],
    *,
    tp_degree: int,
    load: Callable[[], StateDict],
    world_size: int | None,
    local_ranks_size: int | None,
    compiler_args: str | None,
    compiler_workdir: str | None,
    priority_model_idx: int | None,
    logical_nc_config: int,
    dry_run: bool,
) -> BuiltModel | None:
    """Trace, compile and load a module on NeuronCores by NxD's ModelBuilder.

    The arguments are those of build_module; `load` gives the full state dict.

    Raises:
        UsageError: NxD cannot be imported, or the environment would make its numbers those of another program.
    """
    for sentence in dangers(os.environ):
        raise UsageError(sentence)
    require()
    from neuronx_distributed.trace import ModelBuilder  # noqa: PLC0415
    from neuronx_distributed.trace.model_builder import BaseModelInstance  # noqa: PLC0415

    make = partial(module_cls, **kwargs)
    ranked = rank_data(make, tp_degree)
    own_workdir = TemporaryDirectory(prefix="tp-harness-")
    arguments = builder_arguments(
        tp_degree=tp_degree,
        load=load,
        ranked=ranked,
        world_size=world_size,
        local_ranks_size=local_ranks_size,
        compiler_workdir=compiler_workdir or own_workdir.name,
        logical_nc_config=logical_nc_config,
    )
    builder = ModelBuilder(**arguments)
    builder.add(
        key=getattr(module_cls, "__name__", type(module_cls).__name__),
        model_instance=BaseModelInstance(partial(make_traced, make, ranked, tp_degree), input_output_aliases={}),
        example_inputs=example_inputs,
        compiler_args=compiler_args,
        priority_model_idx=priority_model_idx,
    )
    model = builder.trace(initialize_model_weights=True, dry_run=dry_run)
    if dry_run:
        return None
    model.nxd_model.initialize_with_saved_weights(start_rank_tensor=torch.tensor([0]))
    return BuiltModel(model, tp_degree, own_workdir)
