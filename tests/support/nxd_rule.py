"""How neuronx-distributed cuts a checkpoint by parameters' attributes: its trace/trace.py, restated (0.17 and 0.18)."""

from __future__ import annotations

import torch


def pieces(full: torch.Tensor, dim: int, stride: int, rank: int, size: int) -> torch.Tensor:
    """create_local_weight: cut into size * stride pieces, every size-th from the rank-th on."""
    length = full.shape[dim] // size // stride
    return torch.cat(full.split(length, dim=dim)[rank::size], dim=dim)


def cut(full: torch.Tensor, parameter: torch.Tensor, rank: int) -> torch.Tensor:
    """What shard_children makes of a checkpoint's tensor for a parameter with these attributes."""
    if not getattr(parameter, "tensor_model_parallel", False):
        return full
    dim, size = parameter.partition_dim, parameter.num_partitions
    if hasattr(parameter, "fused_qkv"):
        q_rows = parameter.num_attention_heads * parameter.head_dim
        kv_rows = parameter.num_key_value_heads * parameter.head_dim
        parts = full.split([q_rows, kv_rows, kv_rows], dim=dim)
        return torch.cat([pieces(part, dim, 1, rank % size, size) for part in parts], dim=dim)
    return pieces(full, dim, parameter.partition_stride, rank % size, size)
