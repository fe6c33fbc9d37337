"""Our modules as neuronx-distributed (NxD) traces and shards them.

Where NxD's own sharding must cut our modules, it finds the attributes it reads (nxd_attributes.py).
What its trace would get wrong is prepared here:

- NxD shards the parameters of its own layer classes only, so a module that holds sharded parameters becomes a
  subclass of NxD's base layer as well, which changes nothing else about it;
- it cuts KV heads but does not replicate them, so the checkpoint's are repeated first;
- it traces one program for all ranks with rank 0's values, so a buffer that differs from rank to rank becomes a
  parameter, of which each rank is given its own piece.

Sources: neuronx_distributed 0.17 and 0.18 (trace/trace.py, utils/model_utils.py, parallel_layers/layers.py,
mappings.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from ..parallel.group import Group, use_group
from ..parallel.nxd_attributes import marks, replicate_kv
from ..parallel.placements import QKVHeads, Shard

StateDict = Mapping[str, torch.Tensor]


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

    A buffer (length, ...) gives (size * length, ...); a scalar counts as one element, which broadcasts alike. int64
    becomes int32, as NxD's own ranks are (SPMDRank): Trn1 has no int64. Other dtypes stay.
    """
    found: dict[str, torch.Tensor] = {}
    by_rank = []
    for rank in range(size):
        with use_group(Group(rank, size)), torch.device("meta"):
            by_rank.append(dict(make().named_buffers()))
    for name, first in by_rank[0].items():
        values = [buffers[name] for buffers in by_rank]
        if not first.is_meta and not all(torch.equal(value, first) for value in values):
            joined = torch.cat([torch.atleast_1d(value) for value in values])
            found[name] = joined.to(torch.int32) if joined.dtype == torch.int64 else joined
    return found


def prepare(module: nn.Module, ranked: Mapping[str, torch.Tensor], base: type[nn.Module], size: int) -> nn.Module:
    """Make NxD's checkpoint sharding treat the module as its plan says; see the module docstring.

    Args:
        module: a rank's own; its parameters carry the attributes of nxd_attributes.py.
        ranked: what `rank_data` found, of shape (size * length, ...) each and any dtype but int64.
        base: NxD's BaseParallelLinear.
        size: tp_degree, a number of ranks.

    Returns:
        The same module, changed in place.
    """
    for name in ranked:
        owner, _, leaf = name.rpartition(".")
        holder = module.get_submodule(owner)
        value = torch.atleast_1d(getattr(holder, leaf)).to(ranked[name].dtype)
        delattr(holder, leaf)
        holder.register_parameter(leaf, nn.Parameter(value, requires_grad=False))
        # Set on the one that is there now: NxD's init_on_device makes another of it, and chokes on attributes.
        for attribute, setting in marks(Shard(0), size).items():
            setattr(holder.get_parameter(leaf), attribute, setting)
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
    """The module that `make` gives, ready for ModelBuilder.

    Args:
        ranked: as `prepare` takes it, of shape (size * length, ...) each and any dtype but int64.
        size: tp_degree, a number of ranks.
    """
    from neuronx_distributed.parallel_layers.layers import BaseParallelLinear  # noqa: PLC0415

    return prepare(make(), ranked, BaseParallelLinear, size)
