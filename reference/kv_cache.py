"""What attention remembers between calls: the keys and values of one layer, as a value that travels in and out.

The token at position p is in slot p % slots. A full-attention layer has as many slots as the longest sequence; a
windowed layer has as many as its window, and is a ring. Which slots a query sees follows from positions alone.

Shape suffixes: B rows of a batch; S new tokens of a row; C slots; K keys; G key/value heads; D head_dim.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

EMPTY = -1  # the position of an empty slot, and of a padding token


@dataclass(frozen=True)
class KVCache:
    """The keys and values of one layer; no function changes it.

    key and value (batch, slots, G, D), any dtype; positions (batch, slots) int64: that of the token in each slot, or
    EMPTY. What an empty slot holds of keys and values is seen by no query.
    """

    key: Tensor
    value: Tensor
    positions: Tensor


def empty_cache(batch: int, slots: int, heads: int, head_dim: int, dtype: torch.dtype = torch.float32) -> KVCache:
    """Return a cache of `slots` empty slots for each of `batch` rows, key and value (batch, slots, heads, head_dim)."""
    key, value = (torch.zeros(batch, slots, heads, head_dim, dtype=dtype) for _ in range(2))
    return KVCache(key, value, torch.full((batch, slots), EMPTY))


def reused(cache: KVCache, rows: Tensor, lengths: Tensor) -> KVCache:
    """Return the cache with which requests begin that share their first tokens with earlier ones, or nothing.

    rows (batch,) int64: the row of `cache` that each new row continues. lengths (batch,) int64: how many tokens of it
    are shared: a slot with another position is empty, all of them at length 0.

    A windowed layer holds the last tokens of its ring only. What a row whose sequence is longer than the ring shares
    must therefore be all of it, or one token less.
    """
    positions = cache.positions[rows]
    positions = torch.where(positions < lengths[:, None], positions, EMPTY)
    return KVCache(cache.key[rows], cache.value[rows], positions)


def extended(cache: KVCache, key: Tensor, value: Tensor, positions: Tensor) -> KVCache:
    """Return what new tokens attend to: the slots, then the tokens themselves; all have C + S slots.

    key and value (B, S, G, D), positions (B, S) int64, EMPTY for padding.
    """
    new = KVCache(key, value, positions)
    parts = ((getattr(old, name) for old in (cache, new)) for name in ("key", "value", "positions"))
    return KVCache(*(torch.cat(tuple(part), dim=1) for part in parts))


def written(cache: KVCache, key: Tensor, value: Tensor, positions: Tensor) -> KVCache:
    """Return the cache with the tokens of key and value (B, S, G, D) in it; only the last C of each row are kept.

    positions (B, S) int64 ascend in each row, padding (EMPTY) apart, which is not written.
    """
    slots = cache.positions.shape[1]
    keys, values, held = cache.key.clone(), cache.value.clone(), cache.positions.clone()
    for row, at in enumerate(positions):
        tokens = (at != EMPTY).nonzero()[:, 0][-slots:]
        slot = at[tokens] % slots
        keys[row, slot], values[row, slot] = key[row, tokens], value[row, tokens]
        held[row, slot] = at[tokens]
    return KVCache(keys, values, held)


def visible_keys(queries: Tensor, keys: Tensor, window: int) -> Tensor:
    """Map positions (B, S) and (B, K) to bool (B, S, K): True where gpt_oss.visible is, and the key is not EMPTY."""
    distance = queries[:, :, None] - keys[:, None, :]
    seen = (distance >= 0) & (keys != EMPTY)[:, None, :]
    return seen & (distance < window) if window > 0 else seen
