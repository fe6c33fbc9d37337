"""The attributes by which neuronx-distributed's own checkpoint sharding knows how a parameter is cut.

Set from the plan and read back from modules that neuronx-distributed built, so that both tools cut alike.

Source: neuronx_distributed 0.17 and 0.18, parallel_layers/utils.py (the names and defaults) and trace/trace.py (what
they mean: the dimension is cut into num_partitions * partition_stride pieces, and rank r gets every num_partitions-th
piece from the r-th on; with fused_qkv, query, key and value rows are cut one by one).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from .placements import KVHeads, Partial, Placement, QKVHeads, Replicate, Shard, StridedShard

NOT_SHARDED = {"tensor_model_parallel": False, "partition_dim": -1, "partition_stride": 1, "num_partitions": 1}


def marks(placement: Placement, size: int) -> dict[str, Any]:
    """The attributes, by name, of a parameter that is placed like that on `size` ranks.

    Where KV heads are replicated (size > num_key_value_heads), num_key_value_heads is the number after replication:
    neuronx-distributed cuts a checkpoint in which a hook has repeated them (see `replicate_kv`).

    Raises:
        TypeError: partial sums, or a placement of a user's own.
    """
    if isinstance(placement, Replicate) or size == 1:
        return dict(NOT_SHARDED)
    cut: dict[str, Any] = {"tensor_model_parallel": True, "partition_stride": 1, "num_partitions": size}
    match placement:
        case Shard(dim=dim):
            return cut | {"partition_dim": dim}
        case StridedShard(dim=dim, stride=stride):
            return cut | {"partition_dim": dim, "partition_stride": stride}
        case KVHeads(dim=dim):
            return cut | {"partition_dim": dim}
        case QKVHeads(num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=head_dim):
            fused = {"fused_qkv": True, "num_attention_heads": heads, "head_dim": head_dim}
            return cut | fused | {"partition_dim": 0, "num_key_value_heads": max(kv_heads, size)}
        case _:
            kind = "partial sums" if isinstance(placement, Partial) else str(placement)
            raise TypeError(f"a parameter is not placed as {kind}")


def mark(module: nn.Module, plan: Mapping[str, Placement], size: int) -> None:
    """Set the attributes on every parameter of the module that the plan names.

    Raises:
        TypeError: as `marks`.
    """
    for name, parameter in module.named_parameters():
        if name in plan:
            for attribute, value in marks(plan[name], size).items():
                setattr(parameter, attribute, value)


def marked(parameter: torch.Tensor, size: int) -> Placement | None:
    """The placement that the attributes of a parameter (any shape) give; None where it has none or is not sharded."""
    if not getattr(parameter, "tensor_model_parallel", False):
        return None
    if getattr(parameter, "fused_qkv", False):
        return QKVHeads(*(getattr(parameter, name) for name in _QKV))
    dim, stride = getattr(parameter, "partition_dim", 0), getattr(parameter, "partition_stride", 1)
    return Shard(dim) if stride == 1 else StridedShard(dim, stride)


def replicate_kv(full: torch.Tensor, placement: QKVHeads | KVHeads, size: int) -> torch.Tensor:
    """A full parameter with every KV head repeated so often that `size` ranks get one each.

    Neighbouring ranks then hold copies of one head, as `KVHeads` places them. Only the length of the placement's
    dimension grows in the shape, and not where `size` ranks have a head each already.

    Raises:
        PlacementError: as `KVHeads.replicas`.
    """
    unit = placement.head_dim if isinstance(placement, QKVHeads) else placement.unit
    dim = 0 if isinstance(placement, QKVHeads) else placement.dim
    heads = placement.num_key_value_heads if isinstance(placement, QKVHeads) else placement.num_heads
    copies = KVHeads(dim, heads, unit).replicas(size)
    rows = heads * unit
    queries = full.shape[dim] - 2 * rows if isinstance(placement, QKVHeads) else 0
    parts = [full.narrow(dim, 0, queries)] if queries else []
    for start in range(queries, full.shape[dim], rows):
        by_head = full.narrow(dim, start, rows).unflatten(dim, (heads, unit))
        parts.append(by_head.repeat_interleave(copies, dim=dim).flatten(dim, dim + 1))
    return torch.cat(parts, dim=dim)


_QKV = ("num_attention_heads", "num_key_value_heads", "head_dim")
