"""One transformer layer: attention, then mixture of experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import nn

from ....parallel.group import Group, current_group
from ....parallel.placements import Placement
from ....reference.kv_cache import KVCache
from ..config import InferenceConfig, ModelConfig
from .attention import NeuronGPTOSSAttentionBlock
from .expert_parallel import Placed
from .mlp import NeuronGPTOSSMLPBlock


class NeuronGPTOSSTransformerBlock(nn.Module):
    """mlp(attn(x)); both add their residual themselves."""

    def __init__(
        self,
        config: InferenceConfig,
        layer_idx: int = 0,
        *,
        group: Group | None = None,
        weight_init_value: float | None = None,
    ) -> None:
        super().__init__()
        group = group or current_group()
        self.attn = NeuronGPTOSSAttentionBlock(config, layer_idx, group=group, weight_init_value=weight_init_value)
        self.mlp = NeuronGPTOSSMLPBlock(config, layer_idx, group=group, weight_init_value=weight_init_value)

    @staticmethod
    def plan(config: ModelConfig) -> dict[str, Placed]:
        """Parameter name -> placement; of shared out experts, along each axis of the mesh."""
        return prefixed("attn.", NeuronGPTOSSAttentionBlock.plan(config)) | prefixed(
            "mlp.", NeuronGPTOSSMLPBlock.plan(config)
        )

    @staticmethod
    def taps(config: ModelConfig) -> dict[str, Placement]:
        """Intermediate tensor -> placement, in order of execution."""
        return prefixed("attn.", NeuronGPTOSSAttentionBlock.taps(config)) | prefixed(
            "mlp.", NeuronGPTOSSMLPBlock.taps(config)
        )

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_ids: torch.Tensor | None = None,
        cache: KVCache | None = None,
        *,
        sequence_parallel: bool | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, KVCache]:
        """(batch, seq, hidden) and position_ids (batch, seq) int64, or (n_tokens, hidden); same shape and dtype out.

        With a cache of this rank's KV heads, the next cache is returned too. Sequence parallel as in both parts.
        """
        attended = self.attn(hidden_states, position_ids, cache, sequence_parallel=sequence_parallel)
        if cache is None:
            out: torch.Tensor = self.mlp(attended, sequence_parallel=sequence_parallel)
            return out
        y_BSH, cache = attended
        return self.mlp(y_BSH, sequence_parallel=sequence_parallel), cache


T = TypeVar("T")


def prefixed(prefix: str, plan: Mapping[str, T]) -> dict[str, T]:
    """The plan or taps of a submodule, under its parent's names."""
    return {prefix + name: placement for name, placement in plan.items()}
