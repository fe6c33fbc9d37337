"""Requests of different length served together: which tokens of each row a call takes, padded left or right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from tp_harness.reference.kv_cache import EMPTY, KVCache

PAD_TOKEN = 3  # an ordinary token: that it is padding is said by its position alone

Decoder = Callable[..., Any]  # (tokens, positions, past, reused) -> an object with logits and past


def padded(rows: Sequence[Tensor], side: str, value: int) -> Tensor:
    """Rows (length of each,) as one tensor (batch, longest)."""
    width = max(map(len, rows))
    fill = [row.new_full((width - len(row),), value) for row in rows]
    parts = zip(fill, rows, strict=True) if side == "left" else zip(rows, fill, strict=True)
    return torch.stack([torch.cat(pair) for pair in parts])


def unpadded(logits: Tensor, counts: Sequence[int], side: str) -> list[Tensor]:
    """The rows (count of each, vocab) of logits (batch, longest, vocab)."""
    width = logits.shape[1]
    starts = [width - count if side == "left" else 0 for count in counts]
    return [row[start : start + count] for row, start, count in zip(logits, starts, counts, strict=True)]


def serve(
    decode: Decoder,
    rows: Sequence[Tensor],
    calls: Sequence[Sequence[int]],
    past: tuple[KVCache, ...],
    *,
    side: str = "right",
    begun: Sequence[int] | None = None,
    reused: tuple[Tensor, Tensor] | None = None,
) -> tuple[list[Tensor], tuple[KVCache, ...]]:
    """Decode rows of token ids in calls that take so many tokens of each row.

    The first of them is at position `begun` of its row, and `reused` is what the first call gets. Returns each row's
    logits (its tokens taken, vocab), and the caches after the last call.
    """
    at = list(begun or [0] * len(rows))
    found: list[list[Tensor]] = [[] for _ in rows]
    for counts in calls:
        spans = [torch.arange(start, start + count) for start, count in zip(at, counts, strict=True)]
        tokens = padded([row[span] for row, span in zip(rows, spans, strict=True)], side, PAD_TOKEN)
        decoded = decode(tokens, padded(spans, side, EMPTY), past, reused)
        past, reused = decoded.past, None
        at = [start + count for start, count in zip(at, counts, strict=True)]
        for parts, part in zip(found, unpadded(decoded.logits, counts, side), strict=True):
            parts.append(part)
    return [torch.cat(parts) for parts in found], past


def stale(caches: tuple[KVCache, ...], seed: int = 7) -> tuple[KVCache, ...]:
    """The same caches with numbers in their slots that no query may see, as memory that was used before has them."""
    generator = torch.Generator().manual_seed(seed)

    def noise(like: Tensor) -> Tensor:
        return 30 * torch.randn(like.shape, generator=generator).to(like.dtype)

    return tuple(KVCache(noise(cache.key), noise(cache.value), cache.positions) for cache in caches)
