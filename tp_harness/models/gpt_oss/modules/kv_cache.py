"""A rank's KV cache: the slots of its own KV heads, in fixed shapes and without a branch on data.

The cache is the reference's value (reference/kv_cache.py says what is in which slot); what is done with it is written
here by itself, so that a mistake shows. Neighbours that hold the same KV head hold the same cache.

Shape suffixes: B batch, S new tokens of a row, C slots, K local KV heads, D head_dim.
"""

from __future__ import annotations

import torch

from ....parallel.placements import KVHeads, Placement, Replicate
from ....reference.kv_cache import EMPTY, KVCache
from ..config import ModelConfig


def cache_placements(config: ModelConfig) -> dict[str, Placement]:
    """Field of a KVCache -> placement."""
    heads = KVHeads(2, config.num_key_value_heads)
    return {"key": heads, "value": heads, "positions": Replicate()}


def reused(cache: KVCache, rows: torch.Tensor, lengths: torch.Tensor) -> KVCache:
    """The cache with which new requests begin.

    rows, (batch,) int64: which row of `cache` each continues. lengths, (batch,) int64: how many of its tokens are
    theirs too; the slots of the others count as empty.
    """
    positions = cache.positions.index_select(0, rows)
    is_shared = positions < lengths[:, None]
    return KVCache(
        cache.key.index_select(0, rows),
        cache.value.index_select(0, rows),
        torch.where(is_shared, positions, torch.full_like(positions, EMPTY)),
    )


def extended(cache: KVCache, new: KVCache) -> KVCache:
    """The slots of the cache, then those of the new tokens: what these attend to."""
    return KVCache(
        torch.cat((cache.key, new.key), dim=1),
        torch.cat((cache.value, new.value), dim=1),
        torch.cat((cache.positions, new.positions), dim=1),
    )


def written(cache: KVCache, new: KVCache) -> KVCache:
    """The cache after the new tokens, each in slot position % slots; of several for one slot the last is kept.

    The new tokens' positions, (batch, seq) int64, ascend in each row; those that are EMPTY are not written.
    """
    slots = cache.positions.shape[1]
    slot_C = torch.arange(slots, device=new.positions.device)
    last_B1 = new.positions.amax(dim=1, keepdim=True)
    newest_BC = last_B1 - (last_B1 - slot_C) % slots  # the position that belongs there; negative where there is none
    is_it_BCS = (newest_BC[:, :, None] == new.positions[:, None]) & (newest_BC >= 0)[:, :, None]
    token_BC = (is_it_BCS * torch.arange(new.positions.shape[1], device=slot_C.device)).amax(-1)
    is_new_BC = is_it_BCS.any(-1)

    def put(old_BCKD: torch.Tensor, new_BSKD: torch.Tensor) -> torch.Tensor:
        index = token_BC[:, :, None, None].expand(old_BCKD.shape)
        return torch.where(is_new_BC[:, :, None, None], new_BSKD.gather(1, index).to(old_BCKD.dtype), old_BCKD)

    positions = torch.where(is_new_BC, newest_BC, cache.positions)
    return KVCache(put(cache.key, new.key), put(cache.value, new.value), positions)
