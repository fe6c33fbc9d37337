"""Mistakes of attention: projections, heads, rotation, window, and the sum over ranks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from ....faults.fault import Fault, always, sharded
from ....faults.ways import (
    Apply,
    all_of,
    computes,
    edits,
    is_last,
    loads,
    loads_from,
    loads_parts,
    passes,
    put,
    reduces,
    runs,
    sets,
    sum_of_pair,
    unseen_sum,
)
from ....parallel.group import Group
from ....parallel.placements import Placement, Shard
from ..config import InferenceConfig

QUERY, KEY, VALUE = 0, 1, 2  # parts of the fused projection


def _windowed(config: InferenceConfig, tp: int) -> bool:
    return config.neuron_config.seq_len > config.sliding_window


def _fills_window(config: InferenceConfig, tp: int) -> bool:
    return config.neuron_config.seq_len >= config.sliding_window


def _several_tokens(config: InferenceConfig, tp: int) -> bool:
    return config.neuron_config.seq_len > 1


def _several_rows(config: InferenceConfig, tp: int) -> bool:
    return config.neuron_config.batch_size > 1


def _dropped(placement: Placement, full: torch.Tensor, rank: int, size: int) -> torch.Tensor:
    return 0 * placement.shard(full, rank, size)


def _of_rank_0(placement: Placement, full: torch.Tensor, rank: int, size: int) -> torch.Tensor:
    return placement.shard(full, 0, size)


def _contiguous(placement: Any, full: torch.Tensor, rank: int, size: int) -> torch.Tensor:
    """A plain slice of rows, where that has the right size."""
    plain = Shard(0) if size <= placement.num_key_value_heads else placement
    return plain.shard(full, rank, size)


def _modulo(placement: Any, full: torch.Tensor, rank: int, size: int) -> torch.Tensor:
    """The shard of the rank that holds KV head rank % heads instead of rank // (size / heads)."""
    heads = placement.num_key_value_heads
    return placement.shard(full, rank % heads * (size // heads) if size > heads else rank, size)


def _of_kv(load: Any) -> Apply:
    """Keys and values, weights and biases."""
    return all_of(*(loads_parts(f"qkv.{name}", (KEY, VALUE), load) for name in ("weight", "bias")))


def _tile(module: Any, group: Group) -> None:
    """Query head h is served by KV head h % heads: permute the queries and sinks on the way in, the result back."""
    heads, attend = module.local_kv_heads, module._attend
    per_head = module.local_heads // heads

    def tiled(query: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        swapped = query.flatten(2, 3).unflatten(2, (per_head, heads)).transpose(2, 3)
        out = attend(swapped, *others).unflatten(2, (heads, per_head, -1))
        return out.transpose(2, 3).flatten(2)

    put(module, "sinks", module.sinks.unflatten(0, (per_head, heads)).T.flatten())
    module._attend = tiled


def _interleaved(_self: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    first, second = x[..., ::2], x[..., 1::2]
    return torch.stack((first * cos - second * sin, second * cos + first * sin), dim=-1).flatten(-2)


def _query_only(self: Any, query: torch.Tensor, key: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return self._rotate(query, self.cos[ids][:, :, None], self.sin[ids][:, :, None]), key


def _not_causal(self: Any, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    distance = queries[:, :, None] - keys[:, None, :]
    return distance < self.window if self.window else distance < math.inf


def _axes_swapped(group: Group, x: torch.Tensor) -> torch.Tensor:
    swapped = x.transpose(0, 1).contiguous().view(x.shape)
    return group.all_reduce(swapped if group.size > 1 else x)


def _gathered(group: Group, x: torch.Tensor) -> torch.Tensor:
    return group.all_gather(x.chunk(group.size, -1)[group.rank].contiguous(), -1)


def _window(tokens: int) -> Apply:
    """The window longer by so many tokens."""
    return sets("", window=lambda module, group: module.window + tokens)


def _parity_swapped(module: Any, group: Group) -> None:
    windows = [block.attn.window for block in module.block]
    for i, block in enumerate(module.block):
        block.attn.window = windows[i ^ 1] if i ^ 1 < len(windows) else 0


def _rope_table(owner: str, wrong: Callable[[torch.Tensor, Group], torch.Tensor]) -> Apply:
    return sets(owner, cos=lambda rope, group: wrong(rope.cos, group), sin=lambda rope, group: wrong(rope.sin, group))


def _not_concentrated(module: Any, group: Group) -> None:
    """The angle of position 0 is 0, whose cosine is 1."""
    concentration = module.rope.cos[0, 0]
    module.rope.cos, module.rope.sin = module.rope.cos / concentration, module.rope.sin / concentration


def _attention(name: str, number: int, cause: str, apply: Apply, *flags: str, **fields: Any) -> Fault:
    """Most faults of this file: in layer 0, at more than one rank; every one reaches the output."""
    defaults: dict[str, Any] = {"active": sharded, "component": "attention"} | fields
    return Fault(name=name, number=number, cause=cause, apply=apply, flags=(*flags, "output.0"), **defaults)


# fmt: off
FAULTS = (  # a fault reads as one paragraph
    _attention(
        "qkv-cut-contiguously", 16, "The fused projection is cut into equal slices instead of by heads.",
        loads("qkv.weight", _contiguous), "q_rope", loads=True,
        active=lambda config, tp: 1 < tp <= config.num_key_value_heads, signature="qkv cut contiguously",
    ),
    _attention(
        "kv-modulo", 17, "Ranks take KV head rank % heads (0, 1, 0, 1) where neighbours share one (0, 0, 1, 1).",
        _of_kv(_modulo), "k_rope", "value", loads=True, active=lambda config, tp: tp > config.num_key_value_heads,
        signature="kv heads modulo",
    ),
    _attention(
        "gqa-tiled", 18, "KV heads are tiled over the query heads (0, 1, 0, 1) instead of repeated (0, 0, 1, 1).",
        edits(_tile), "heads", signature="kv heads tiled",
        active=lambda config, tp: 1 < config.num_key_value_heads // tp < config.num_attention_heads // tp,
    ),
    _attention(
        "kv-of-rank-0", 19, "Every rank loads the KV heads of rank 0.",
        _of_kv(_of_rank_0), "k_rope", "value", loads=True, signature="rank 0 everywhere",
    ),
    _attention(
        "query-bias-of-rank-0", 20, "Every rank loads the query bias of rank 0.",
        loads_parts("qkv.bias", (QUERY,), _of_rank_0), "q_rope", loads=True, signature="qkv bias of rank 0",
    ),
    _attention(
        "key-bias-dropped", 21, "The key bias is not loaded.",
        loads_parts("qkv.bias", (KEY,), _dropped), "k_rope", loads=True, active=always, signature="qkv bias dropped",
    ),
    _attention(
        "value-bias-dropped", 22, "The value bias is not loaded.",
        loads_parts("qkv.bias", (VALUE,), _dropped), "value", loads=True, active=always, signature="qkv bias dropped",
    ),
    _attention(
        "rope-interleaved", 23, "Neighbouring elements are rotated as pairs instead of the two halves of a head.",
        runs("", "_rotate", _interleaved), component="rope", active=_several_tokens, signature="rope interleaved",
    ),
    _attention(
        "rope-interleaved-in-attention", 23,
        "Neighbouring elements of queries and keys are rotated as pairs instead of the two halves of a head.",
        runs("rope", "_rotate", _interleaved), "q_rope", "k_rope", active=_several_tokens, signature="rope interleaved",
    ),
    _attention(
        "rope-offset-by-rank", 24, "Positions are off by the rank.",
        _rope_table("", lambda table, group: table.roll(-group.rank, 0)), component="rope",
        signature="rope offset by rank",
    ),
    _attention(
        "rope-not-on-keys", 25, "Keys are not rotated.",
        runs("rope", "forward", _query_only), "k_rope", active=always, signature="rope not applied",
    ),
    _attention(
        "concentration-missing", 26, "YaRN's concentration is missing from the rotation.",
        edits(_not_concentrated), "q_rope", "k_rope",
        active=lambda config, tp: config.rope_scaling_factor > 1, signature="yarn concentration missing",
    ),
    _attention(
        "scale-of-local-heads", 27, "The softmax scale is made of the rank's number of heads.",
        sets("", softmax_scale=lambda module, group: 1 / math.sqrt(module.local_heads)), "heads",
        active=lambda config, tp: config.num_attention_heads != tp * config.head_dim, signature="softmax scale",
    ),
    _attention(
        "sinks-of-rank-0", 28, "Every rank loads the sinks of rank 0.",
        loads_from("sinks", lambda rank, size: 0), "heads", loads=True, signature="sinks of rank 0",
    ),
    _attention(
        "sinks-missing", 29, "The sinks are missing from the softmax.",
        computes("sinks", lambda x, rank, size: torch.full_like(x, -1e30)), "heads", active=always,
        signature="sinks dropped",
    ),
    _attention(
        "window-on-odd-layer", 30, "An odd layer has a sliding window (here of 16 tokens).",
        _window(16), "heads", layer=1, active=lambda config, tp: config.neuron_config.seq_len > 16,
        signature="window length",
    ),
    _attention(
        "window-parity-swapped", 30, "Odd layers have the sliding window instead of even ones.",
        edits(_parity_swapped), "block.0.attn.heads", component="transformer",
        active=lambda config, tp: _windowed(config, tp) and config.num_hidden_layers > 1, signature="window missing",
    ),
    _attention(
        "window-too-long", 31, "The sliding window is one token too long.",
        _window(1), "heads", active=_windowed, signature="window length",
    ),
    _attention(
        "window-too-short", 31, "The sliding window is one token too short.",
        _window(-1), "heads", active=_fills_window, signature="window length",
    ),
    _attention(
        "window-missing", 32, "An even layer has no sliding window.",
        sets("", window=lambda module, group: 0), "heads", active=_windowed, signature="window missing",
    ),
    _attention(
        "not-causal", 0, "Tokens attend to later tokens.",
        runs("", "_visible", _not_causal), "heads", active=_several_tokens, signature="not causal",
    ),
    _attention(
        "keys-of-row-0", 0, "Every row of the batch attends to the keys of row 0.",
        passes("k_rope", lambda k, _: k[:1].expand_as(k)), "k_rope", active=_several_rows, signature="row 0 everywhere",
    ),
    _attention(
        "projection-of-next-rank", 33, "Each rank loads the next rank's columns of the output projection.",
        loads_from("out.weight", lambda rank, size: (rank + 1) % size), "partial", loads=True,
        signature="weights of other rank",
    ),
    _attention(
        "heads-reversed", 34, "The output projection's columns are shared out in reverse order of ranks.",
        loads_from("out.weight", lambda rank, size: size - 1 - rank), "partial", loads=True,
        signature="weights of other rank",
    ),
    _attention(
        "out-bias-x-tp", 35, "The output projection's bias is added on every rank, tp times in all.",
        computes("out.bias", lambda x, rank, size: x * size), "reduced", signature="bias x tp",
    ),
    _attention(
        "out-bias-by-tp", 36, "The output projection's bias is divided by tp and added once.",
        computes("out.bias", lambda x, rank, size: x / size), "reduced", signature="bias / tp",
    ),
    _attention(
        "out-bias-dropped", 37, "The output projection's bias is not added.",
        computes("out.bias", lambda x, rank, size: 0 * x), "reduced", active=always, signature="bias dropped",
    ),
    _attention(
        "not-reduced", 38, "The all-reduce after attention is missing.",
        reduces("", lambda group, x: x), "total", signature="all-reduce missing",
    ),
    _attention(
        "last-rank-dropped", 39, "The last rank's part is missing from the sum.",
        reduces("", lambda g, x: g.all_reduce(0 * x if is_last(g) else x)), "total", signature="rank dropped",
    ),
    _attention(
        "reduced-in-pairs", 40, "The sum runs over groups of two ranks instead of all.",
        reduces("", sum_of_pair), "total", active=lambda config, tp: tp > 2, signature="reduced in subgroups",
    ),
    _attention(
        "mean-instead-of-sum", 41, "The ranks' parts are averaged instead of added.",
        reduces("", lambda group, x: group.all_reduce(x) / group.size), "total", signature="divided by tp",
    ),
    _attention(
        "reduced-twice", 42, "The sum over ranks runs twice.",
        reduces("", lambda group, x: group.all_reduce(group.all_reduce(x))), "total", signature="times tp",
    ),
    _attention(
        "reduced-twice-out-of-sight", 42, "The sum over ranks runs twice, once inside a kernel that nothing records.",
        reduces("", lambda group, x: group.all_reduce(unseen_sum(group, x))), "total", signature="times tp",
    ),
    _attention(
        "gathered-instead-of-reduced", 43, "Slices of the ranks' parts are gathered where the parts must be added.",
        reduces("", _gathered), "total", active=lambda config, tp: tp > 1 and config.hidden_size % tp == 0,
        signature="gathered instead of reduced",
    ),
    _attention(
        "axes-swapped-around-sum", 44, "Batch and sequence are swapped going into the sum and not coming out.",
        reduces("", _axes_swapped), "total", signature="axes swapped",
        active=lambda config, tp: tp > 1 and _several_rows(config, tp) and _several_tokens(config, tp),
    ),
)
# fmt: on
