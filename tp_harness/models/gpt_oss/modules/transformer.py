"""The whole model: embedding, layers, norm, unembedding."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from ....parallel.group import Group, current_group
from ....parallel.placements import Placement
from ....reference.decoding import Decoded
from ....reference.kv_cache import KVCache
from ..config import InferenceConfig, ModelConfig
from .block import NeuronGPTOSSTransformerBlock, prefixed
from .embedding import NeuronGPTOSSEmbedding, NeuronGPTOSSUnembedding
from .expert_parallel import Placed
from .kv_cache import reused
from .norm import NeuronGPTOSSRMSNorm
from .sequence import placement


class NeuronGPTOSSTransformer(nn.Module):
    """Token ids to the logits of the whole vocabulary, on every rank."""

    def __init__(
        self,
        config: InferenceConfig,
        *,
        group: Group | None = None,
        weight_init_value: float | None = None,
    ) -> None:
        super().__init__()
        shared: dict[str, Any] = {
            "group": group or current_group(),
            "weight_init_value": weight_init_value,
        }
        self.cuts_sequence = partial(config.cuts_sequence, shared["group"].size)
        self.reuse = reused
        self.embedding = NeuronGPTOSSEmbedding(config, **shared)
        layers = range(config.num_hidden_layers)
        self.block = nn.ModuleList(NeuronGPTOSSTransformerBlock(config, i, **shared) for i in layers)
        self.norm = NeuronGPTOSSRMSNorm(config, weight_init_value=weight_init_value)
        self.unembedding = NeuronGPTOSSUnembedding(config, gather_output=True, **shared)

    @staticmethod
    def plan(config: ModelConfig) -> dict[str, Placed]:
        """Parameter name -> placement; of shared out experts, along each axis of the mesh."""
        plan: dict[str, Placed] = prefixed("embedding.", NeuronGPTOSSEmbedding.plan(config))
        for layer in range(config.num_hidden_layers):
            plan |= prefixed(f"block.{layer}.", NeuronGPTOSSTransformerBlock.plan(config))
        plan |= prefixed("norm.", NeuronGPTOSSRMSNorm.plan(config))
        return plan | prefixed("unembedding.", NeuronGPTOSSUnembedding.plan(config))

    @staticmethod
    def taps(config: ModelConfig) -> dict[str, Placement]:
        """Intermediate tensor -> placement, in order of execution."""
        taps = prefixed("embedding.", NeuronGPTOSSEmbedding.taps(config))
        for layer in range(config.num_hidden_layers):
            taps |= prefixed(f"block.{layer}.", NeuronGPTOSSTransformerBlock.taps(config))
        return taps | {"norm": placement(config)} | prefixed("unembedding.", NeuronGPTOSSUnembedding.taps(config))

    def forward(
        self,
        tokens: torch.Tensor,
        position_ids: torch.Tensor | None = None,
        past: tuple[KVCache, ...] | None = None,
        reuse: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor | Decoded:
        """(batch, seq) or (n_tokens,) int64 ids to (..., vocab) logits in the configured dtype.

        With `past`, a cache of this rank's KV heads for each layer, the next caches are returned too. `reuse` are the
        rows and lengths, (batch,) int64 each, with which requests begin on caches of others (kv_cache.reused).
        """
        is_cut = tokens.ndim > 1 and self.cuts_sequence(tokens.shape[1])
        x = self.embedding(tokens, sequence_parallel=is_cut)
        caches = [cache if reuse is None else self.reuse(cache, *reuse) for cache in past or ()]
        for layer, block in enumerate(self.block):
            if past is None:
                x = block(x, position_ids, sequence_parallel=is_cut)
            else:
                x, caches[layer] = block(x, position_ids, caches[layer], sequence_parallel=is_cut)
        logits = self.unembedding(self.norm(x), sequence_parallel=is_cut)
        return logits if past is None else Decoded(logits, tuple(caches))
