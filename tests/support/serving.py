"""Requests of different length served together: which tokens of each row a call takes, padded left or right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from tp_harness.reference import decoding, gpt_oss
from tp_harness.reference.kv_cache import EMPTY, KVCache

PAD_TOKEN = 3  # an ordinary token: that it is padding is said by its position alone
WINDOW, VOCAB = 5, 64
STEP = (1, 1, 1)
CALLS = (  # id, tokens of each row in each call; the caches are full after the last
    ("one_token", [(1,)]),
    ("the_window", [(WINDOW,), (1,), (1,)]),
    ("window_plus_1", [(WINDOW + 1,), (1,), (1,)]),
    ("from_nothing", [(1,)] * (WINDOW + 2)),
    ("ragged", [(7, 3, 1), STEP, STEP, STEP]),
    ("a_row_ends", [(4, 6, 2), STEP, (0, 1, 1), (0, 0, 1)]),
    ("a_row_begins_later", [(4, 6, 0), (1, 1, 3), STEP]),
    ("chunks", [(4, 4), (4, 3), (3, 0), (1, 1)]),
    ("a_chunk_longer_than_the_ring", [(3, 2), (WINDOW + 4, WINDOW + 1), (2, 2)]),
)

Decoder = Callable[..., Any]  # (tokens, positions, past, reuse) -> an object with logits and past


def whole(config: Any, tokens: Tensor) -> Tensor:
    """The logits (count, vocab), float64, of all tokens (count,) in one forward without a cache."""
    return _plain(config)(tokens)


@cache
def _plain(config: Any) -> gpt_oss.Transformer:
    model = gpt_oss.Transformer(config).double().requires_grad_(False)
    model.load_state_dict(weights(config))
    return model


def served(config: Any) -> decoding.Transformer:
    """The reference in float64 that decodes with a cache."""
    model = decoding.Transformer(config).double().requires_grad_(False)
    model.load_state_dict(weights(config))
    return model


@cache
def weights(config: Any) -> dict[str, Tensor]:
    """Random parameters of a Transformer, bfloat16 numbers in float64, at which gates and ups reach their clamps."""
    model, state = gpt_oss.Transformer(config, torch.device("meta")), {}
    for i, (name, parameter) in enumerate(model.named_parameters()):
        gain = 0.4 if parameter.ndim > 1 else 0.7
        state[name] = (gain * normal(*parameter.shape, seed=i) + 1.0 * name.endswith("scale")).bfloat16().double()
    return state


def normal(*shape: int, seed: int) -> Tensor:
    """Random float64 numbers of that shape."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def prompts(lengths: Sequence[int], seed: int = 0) -> list[Tensor]:
    """Random token ids (length,) int64 for each row."""
    generators = (torch.Generator().manual_seed(100 * seed + row) for row in range(len(lengths)))
    return [torch.randint(VOCAB, (n,), generator=g) for n, g in zip(lengths, generators, strict=True)]


def stale_caches(config: Any, batch: int, length: int) -> tuple[KVCache, ...]:
    """Empty float64 caches with numbers in their slots that no query may see, as memory has that was used before."""
    caches = decoding.empty_caches(config, batch, length, torch.float64)
    noise = [(30 * normal(*c.key.shape, seed=i), 30 * normal(*c.value.shape, seed=-i)) for i, c in enumerate(caches)]
    return tuple(KVCache(*pair, empty.positions) for pair, empty in zip(noise, caches, strict=True))


def assert_same(actual: Tensor, expected: Tensor, digits: float = 1e-12) -> None:
    """Close within `digits` of the largest entry: in float64 some hundred roundings of numbers up to it."""
    assert expected.numel()
    assert expected.isfinite().all()
    torch.testing.assert_close(actual, expected, rtol=0, atol=digits * expected.abs().max().item())


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
    reuse: tuple[Tensor, Tensor] | None = None,
) -> tuple[list[Tensor], tuple[KVCache, ...]]:
    """Decode rows of token ids in calls that take so many tokens of each row.

    The first of them is at position `begun` of its row, and `reuse` is what the first call gets. Returns each row's
    logits (its tokens taken, vocab), and the caches after the last call.
    """
    torch.set_num_threads(1)  # the products are small: threads would wait for each other
    at = list(begun or [0] * len(rows))
    found: list[list[Tensor]] = [[] for _ in rows]
    for counts in calls:
        spans = [torch.arange(start, start + count) for start, count in zip(at, counts, strict=True)]
        tokens = padded([row[span] for row, span in zip(rows, spans, strict=True)], side, PAD_TOKEN)
        decoded = decode(tokens, padded(spans, side, EMPTY), past, reuse)
        past, reuse = decoded.past, None
        at = [start + count for start, count in zip(at, counts, strict=True)]
        for parts, part in zip(found, unpadded(decoded.logits, counts, side), strict=True):
            parts.append(part)
    return [torch.cat(parts) for parts in found], past
