"""Mistakes of the KV cache: where tokens are written, what is seen of it, and what a further request begins with.

Each has been reported: a cause ends with a public report of its kind.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ....faults.fault import Fault, always
from ....faults.ways import Apply, all_of, runs, sets
from ....parallel.group import Group
from ....reference.kv_cache import EMPTY, KVCache
from ..config import PRESETS, InferenceConfig
from ..modules.kv_cache import extended, reused, written

Change = Callable[[torch.Tensor], torch.Tensor]
WINDOWED, FULL = "block.0.attn", "block.1.attn"  # the layers of the small model
KEY = "prefill/output.past.0.key"


def _several_kv_heads(config: InferenceConfig, tp: int) -> bool:
    return tp < config.num_key_value_heads


def _in_both(**values: Callable[..., object]) -> Apply:
    return all_of(*(sets(name, **{key: _as(value) for key, value in values.items()}) for name in (WINDOWED, FULL)))


def _as(value: Callable[..., object]) -> Callable[[Any, Group], object]:
    return lambda _module, _group: value


def _writes_at(change: Change) -> Callable[[KVCache, KVCache], KVCache]:
    """Write new tokens as if they had other positions."""
    return lambda cache, new: written(cache, KVCache(new.key, new.value, change(new.positions)))


def _padding_counted(positions: torch.Tensor) -> torch.Tensor:
    """Positions as if a row's padding were tokens before it."""
    padding = (positions == EMPTY).sum(1, keepdim=True)
    return torch.where(positions == EMPTY, positions, positions + padding)


def _first_row(positions: torch.Tensor) -> torch.Tensor:
    return torch.cat((positions[:1], torch.full_like(positions[1:], EMPTY)))


def _one_too_late(positions: torch.Tensor) -> torch.Tensor:
    """Steps of one token are written to the slot after theirs."""
    return positions + (positions != EMPTY) if positions.shape[1] == 1 else positions


def _past_the_window(positions: torch.Tensor) -> torch.Tensor:
    """Tokens beyond the small model's window are one slot further."""
    return positions + (positions >= PRESETS["tiny"].sliding_window)


def _never_past_a_prefill(cache: KVCache, new: KVCache) -> KVCache:
    return cache if new.positions.shape[1] == 1 else written(cache, new)


def _heads_by_turns(cache: KVCache, new: KVCache) -> KVCache:
    after = written(cache, new)
    return KVCache(after.key.roll(1, 2), after.value.roll(1, 2), after.positions)


def _written_twice(cache: KVCache, new: KVCache) -> KVCache:
    """The new tokens are seen in the cache, and beside it once more."""
    return extended(written(cache, new), new)


def _rounded(cache: KVCache, new: KVCache) -> KVCache:
    key, value = (x.to(torch.float8_e4m3fn).to(x.dtype) for x in (new.key, new.value))
    return written(cache, KVCache(key, value, new.positions))


def _key_for_value(cache: KVCache, new: KVCache) -> KVCache:
    return written(cache, KVCache(new.key, new.key, new.positions))


def _context_mask(self: Any, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """The window of a prefill alone: the steps see all that the ring holds."""
    distance = queries[:, :, None] - keys[:, None]
    seen = (distance >= 0) & (keys >= 0)[:, None]
    return seen & (distance < self.window) if self.window and queries.shape[1] > 1 else seen


def _short_window(self: Any, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    distance = queries[:, :, None] - keys[:, None]
    seen = (distance >= 0) & (keys >= 0)[:, None]
    return seen & (distance < self.window - 1) if self.window else seen


def _empty_seen(self: Any, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    distance = queries[:, :, None] - keys.clamp(min=0)[:, None]
    return (distance >= 0) & (distance < self.window) if self.window else distance >= 0


def _step_at_0(self: Any, query: torch.Tensor, key: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
    at = torch.zeros_like(ids) if ids.shape[1] == 1 else ids
    rotated = (self._rotate(x, self.cos[i][:, :, None], self.sin[i][:, :, None]) for x, i in ((query, ids), (key, at)))
    return tuple(rotated)


def _decode(name: str, cause: str, apply: Apply, *flags: str, **fields: Any) -> Fault:
    return Fault(
        name=name, number=0, component="decode", cause=cause, apply=apply, flags=flags, **({"active": always} | fields)
    )


# fmt: off
FAULTS = (  # a fault reads as one paragraph
    _decode(
        "cache-padding-written", "Padding is written to the slot of position 0 (tt-forge-onnx#422).",
        _in_both(write=_writes_at(lambda x: x.clamp(min=0))), KEY,
    ),
    _decode(
        "cache-position-of-padding", "Slots count a row's padding as tokens (unsloth#3699).",
        _in_both(write=_writes_at(_padding_counted)), KEY,
    ),
    _decode(
        "cache-first-row-only", "Only row 0 of the batch is written (reasoning-from-scratch#33).",
        _in_both(write=_writes_at(_first_row)), KEY,
    ),
    _decode(
        "cache-step-one-too-late", "A step is written to the slot after its own (onnxruntime-genai#2354).",
        sets(FULL, write=_as(_writes_at(_one_too_late))), "decode.0/output.past.1.key",
    ),
    _decode(
        "cache-ring-off-by-one", "The ring of a windowed layer is written one slot further (transformers#47708).",
        sets(WINDOWED, write=_as(_writes_at(_past_the_window))), "decode.0/output.past.0.key",
        active=lambda config, tp: config.neuron_config.seq_len > config.sliding_window,
    ),
    _decode(
        "cache-frozen-after-prefill", "Steps are not appended: the cache keeps what the prompt filled (rMLX#233).",
        sets(FULL, write=_as(_never_past_a_prefill)), "decode.0/output.past.1.key",
    ),
    _decode(
        "cache-kv-heads-by-turns", "KV heads are kept in another order than queries read them (TensorRT-LLM#6507).",
        sets(WINDOWED, write=_as(_heads_by_turns)), KEY, active=_several_kv_heads,
    ),
    _decode(
        "cache-chunk-seen-twice", "New tokens are seen in the cache and beside it (executorch#21857).",
        sets(FULL, extend=_as(_written_twice)), "prefill/block.1.attn.heads",
    ),
    _decode(
        "cache-in-8-bits", "Keys and values are kept in float8 where the run's dtype is meant (vllm#52997).",
        _in_both(write=_rounded), KEY,
    ),
    _decode(
        "cache-key-for-value", "Values are taken from the cache of keys (transformers#34232).",
        sets(FULL, write=_as(_key_for_value)), "prefill/output.past.1.value",
    ),
    _decode(
        "window-of-prefill-only", "Steps see more than the window (nanochat#456).",
        runs(WINDOWED, "_visible", _context_mask), "decode.0/block.0.attn.heads",
        active=lambda config, tp: config.neuron_config.seq_len > config.sliding_window,
    ),
    _decode(
        "window-one-short", "The window holds one token too few (transformers#37574).",
        runs(WINDOWED, "_visible", _short_window), "chunk/block.0.attn.heads",
        active=lambda config, tp: config.neuron_config.seq_len >= config.sliding_window,
    ),
    _decode(
        "cache-empty-slots-seen", "Slots that nobody wrote are seen (vllm#37152).",
        all_of(*(runs(name, "_visible", _empty_seen) for name in (WINDOWED, FULL))), "prefill/block.0.attn.heads",
    ),
    _decode(
        "cache-stale-request", "A new request sees the slots of a finished one (kvcached#362).",
        sets("", reuse=_as(lambda cache, rows, lengths: reused(cache, rows, lengths + 10**6))),
        "reuse/block.0.attn.heads",
    ),
    _decode(
        "cache-prefix-of-another", "A request continues the prefix of another row (Mooncake#4153).",
        sets("", reuse=_as(lambda cache, rows, lengths: reused(cache, rows.roll(1), lengths))),
        "reuse/block.0.attn.heads",
    ),
    _decode(
        "cache-prefix-one-too-long", "The token that is computed anew is seen in the prefix too (vllm#49125).",
        sets("", reuse=_as(lambda cache, rows, lengths: reused(cache, rows, lengths + (lengths > 0)))),
        "reuse/block.0.attn.heads",
    ),
    _decode(
        "key-position-of-step", "Steps rotate their keys as if they were at position 0 (tt-forge-onnx#422).",
        runs(f"{FULL}.rope", "forward", _step_at_0), "decode.0/block.1.attn.k_rope",
    ),
)
