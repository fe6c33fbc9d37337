"""gpt-oss as it is served, on one core: the classes of gpt_oss.py with a KV cache that travels in and out.

A call takes the next tokens of each row, one or many, with their absolute positions; a padding token has position
EMPTY. It is neither written to the cache nor seen by another token, and sees nothing itself but the sinks. Parameters,
taps and formulas are those of gpt_oss.py; all tokens in one call on empty caches are its whole forward.

Shape suffixes: as in kv_cache.py, and H hidden; N query heads times D.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from . import gpt_oss
from .gpt_oss import ConfigLike, sink_attention
from .kv_cache import EMPTY, KVCache, empty_cache, extended, reused, visible_keys, written
from .rotary import Device


class AttentionBlock(gpt_oss.AttentionBlock):
    """gpt_oss.AttentionBlock with a cache."""

    def forward(self, x: Tensor, positions: Tensor, cache: KVCache) -> tuple[Tensor, KVCache]:  # type: ignore[override]
        """Map x (B, S, H), positions (B, S) int64 and the layer's cache to (B, S, H) and the next cache.

        Raises:
            ValueError: a position is beyond the last slot, and the slots are no ring of at least the window's length.
        """
        slots = cache.positions.shape[1]
        is_ring = 0 < self.sliding_window <= slots
        if not is_ring and int(positions.max()) >= slots:
            raise ValueError(f"position {int(positions.max())} is beyond the last of {slots} slots")
        query, key, value = self.query_key_value(x, positions.clamp(min=0))
        seen = extended(cache, key, value, positions)
        mask = visible_keys(positions, seen.positions, self.sliding_window)
        y = self.add_heads(x, sink_attention(query, seen.key, seen.value, self.sinks, mask))
        return y, written(cache, key, value, positions)


class TransformerBlock(gpt_oss.TransformerBlock):
    """gpt_oss.TransformerBlock with a cache."""

    def __init__(self, config: ConfigLike, layer_idx: int, device: Device = None) -> None:
        super().__init__(config, layer_idx, device)
        self.attn = AttentionBlock(config, layer_idx, device)

    def forward(self, x: Tensor, positions: Tensor, cache: KVCache) -> tuple[Tensor, KVCache]:  # type: ignore[override]
        """Map x (B, S, H), positions (B, S) int64 and the layer's cache to (B, S, H) and the next cache."""
        y, cache = self.attn(x, positions, cache)
        return self.mlp(y), cache


@dataclass(frozen=True)
class Decoded:
    """What a call returns: logits (B, S, vocab), and one cache for each layer."""

    logits: Tensor
    past: tuple[KVCache, ...]


class Transformer(gpt_oss.Transformer):
    """gpt_oss.Transformer with one cache for each layer."""

    def __init__(self, config: ConfigLike, device: Device = None) -> None:
        super().__init__(config, device)
        layers = range(config.num_hidden_layers)
        self.block = torch.nn.ModuleList([TransformerBlock(config, layer, device) for layer in layers])

    def forward(  # type: ignore[override]
        self,
        tokens: Tensor,
        positions: Tensor,
        past: tuple[KVCache, ...],
        reuse: tuple[Tensor, Tensor] | None = None,
    ) -> Decoded:
        """Map tokens and positions (B, S), int64, to logits (B, S, vocab) and the next caches.

        `reuse` are rows and lengths of `kv_cache.reused`, which requests begin with that are not those of the last
        call; without it each row continues its own.
        """
        x, caches = self.embedding(tokens), []
        for block, cache in zip(self.block, past, strict=True):
            x, after = block(x, positions, reused(cache, *reuse) if reuse else cache)
            caches.append(after)
        return Decoded(self.unembedding(self.norm(x)), tuple(caches))


def empty_caches(config: ConfigLike, batch: int, length: int, dtype: torch.dtype) -> tuple[KVCache, ...]:
    """Return an empty cache for each layer: `length` slots, or a ring of the window on the even, windowed, layers."""
    window = min(config.sliding_window, length)
    slots = (length if layer % 2 else window for layer in range(config.num_hidden_layers))
    return tuple(empty_cache(batch, c, config.num_key_value_heads, config.head_dim, dtype) for c in slots)


__all__ = ["EMPTY", "AttentionBlock", "Decoded", "KVCache", "Transformer", "TransformerBlock", "empty_caches"]
