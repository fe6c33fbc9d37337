"""Signatures of attention: projections, rotary embedding, heads, sinks, window and scale."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch.nn.functional import linear

from ....diagnosis.signature import Guess, Signature
from ....diagnosis.site import Site, UnavailableError
from ....parallel.placements import QKVHeads
from .replay import attend, attention_of, projected
from .rotation import LEAVES, rotate, tables, which


def _rotated(site: Site, x: torch.Tensor) -> torch.Tensor:
    """A query or key after the right rotation; a value as it is."""
    return x if site.leaf == "value" else rotate(x, *tables(site))


def bias_dropped(site: Site) -> Iterator[Guess]:
    """The bias of query, key or value left out."""
    bias = torch.zeros_like(site.parameter("qkv.bias"))
    yield Guess(_rotated(site, projected(site, bias=bias)[LEAVES.index(site.leaf)]), which(site))


def bias_of_rank_0(site: Site) -> Iterator[Guess]:
    """The rows of rank 0's bias, on all ranks."""
    block = attention_of(site)
    sizes = [block.q_dim, block.kv_dim, block.kv_dim]
    own = []
    for part, size in zip(site.parameter("qkv.bias").split(sizes), sizes, strict=True):
        first = max(block.head_dim, size // site.tp)
        own.append(part[:first].repeat(size // first))
    if site.tp > 1:
        yield Guess(_rotated(site, projected(site, bias=torch.cat(own))[LEAVES.index(site.leaf)]), which(site))


def cut_contiguously(site: Site) -> Iterator[Guess]:
    """Rank r takes the r-th slice of the fused rows as its own; raises UnavailableError where slices do not fit."""
    weight, bias = site.parameter("qkv.weight"), site.parameter("qkv.bias")
    block, placement = attention_of(site), site.placement("qkv.weight")
    heads, kv_heads = block.q_dim // block.head_dim, block.kv_dim // block.head_dim
    local = [heads // site.tp, max(1, kv_heads // site.tp), max(1, kv_heads // site.tp)]
    rows = sum(local) * block.head_dim
    if site.tp == 1 or rows * site.tp != len(weight) or not isinstance(placement, QKVHeads):
        raise UnavailableError
    at = LEAVES.index(site.leaf)
    for right_bias in (True, False):
        own: list[torch.Tensor] = []
        for rank in range(site.tp):
            cut = slice(rank * rows, (rank + 1) * rows)
            fused = linear(
                site.tap("norm"), weight[cut], placement.shard(bias, rank, site.tp) if right_bias else bias[cut]
            )
            own.append(_rotated(site, fused.unflatten(-1, (-1, block.head_dim)).split(local, dim=-2)[at]))
        yield Guess(own)


def kv_modulo(site: Site) -> Iterator[Guess]:
    """KV head r % kv_heads on rank r, where neighbours share one; raises UnavailableError where no two ranks share."""
    right = site.right
    heads = right.shape[-2]
    if site.leaf not in ("k_rope", "value") or site.tp <= heads:
        raise UnavailableError
    yield Guess([right[..., rank % heads, None, :] for rank in range(site.tp)])


# heads


def sinks_dropped(site: Site) -> Iterator[Guess]:
    """No sink in the softmax, or sinks of 0."""
    yield Guess(attend(site, sinks=torch.full_like(site.parameter("sinks"), -math.inf)), "left out")
    yield Guess(attend(site, sinks=torch.zeros_like(site.parameter("sinks"))), "0")


def sinks_of_rank_0(site: Site) -> Iterator[Guess]:
    """Rank 0's sinks on all ranks."""
    sinks = site.parameter("sinks")
    if site.tp > 1:
        yield Guess(attend(site, sinks=sinks[: len(sinks) // site.tp].repeat(site.tp)))


def window_missing(site: Site) -> Iterator[Guess]:
    """Full attention on a layer that has a window."""
    if attention_of(site).sliding_window:
        yield Guess(attend(site, window=0), str(attention_of(site).sliding_window))


def window_length(site: Site) -> Iterator[Guess]:
    """Another window; the first wrong position tells a shorter one. Raises UnavailableError at a leaf not looked at."""
    right = attention_of(site).sliding_window
    right_heads, seen = (x.to(torch.float64) for x in (site.right, site.traced.full))
    if site.leaf != site.target:
        raise UnavailableError
    rows = (seen - right_heads).norm(dim=-1) > 4 * site.clean.norm(dim=-1).max()
    first = int(rows.any(dim=0).nonzero()[0]) if rows.any() else 0
    longer = (right - 1, right + 1, right + 2, 2 * right) if right else ()
    for window in {w for w in (first, *longer) if 0 < w < site.positions.shape[-1]} - {right}:
        yield Guess(attend(site, window=window), f"{window} tokens instead of {right or 'all'}")


def not_causal(site: Site) -> Iterator[Guess]:
    """No causal mask; the window, where there is one, stays open to later keys."""
    yield Guess(attend(site, causal=False))
    yield Guess(attend(site, causal=False, window=0))


def softmax_scale(site: Site) -> Iterator[Guess]:
    """Other scales than 1 / sqrt(head_dim)."""
    block = attention_of(site)
    dim, heads, hidden = block.head_dim, block.q_dim // block.head_dim, site.tap("norm").shape[-1]
    wrong = {
        "1": 1.0,
        "1 / head_dim": 1 / dim,
        "1 / sqrt(local heads)": (heads / site.tp) ** -0.5,
        "1 / sqrt(heads)": heads**-0.5,
        "1 / sqrt(hidden)": hidden**-0.5,
        "1 / sqrt(hidden / tp)": (hidden / site.tp) ** -0.5,
        "1 / sqrt(head_dim / tp)": (dim / site.tp) ** -0.5,
        "1 / sqrt(head_dim x tp)": (dim * site.tp) ** -0.5,
        "1 / sqrt(local heads x head_dim)": (heads / site.tp * dim) ** -0.5,
    }
    for detail, scale in wrong.items():
        if not math.isclose(scale, dim**-0.5):
            yield Guess(attend(site, scale=scale), detail)


def heads_tiled(site: Site) -> Iterator[Guess]:
    """Query heads 0, 1, 2 with a rank's KV heads 0, 1, 0, not 0, 0, 0; raises UnavailableError below 2 of these."""
    query, key = site.tap("q_rope"), site.tap("k_rope")
    local, kv = query.shape[-2] // site.tp, key.shape[-2] // site.tp
    if kv < 2:
        raise UnavailableError
    order = torch.arange(local).view(-1, kv).T.flatten()  # position in (kv, group) -> query head
    across = torch.cat([order + rank * local for rank in range(site.tp)])
    shuffled = attend(site, query=query[..., across, :])
    yield Guess(shuffled, "and the heads come out in that order")
    shape = shuffled.unflatten(-1, (-1, query.shape[-1]))
    yield Guess(shape[..., across.argsort(), :].flatten(-2))
    with_sinks = attend(site, query=query[..., across, :], sinks=site.parameter("sinks")[across])
    yield Guess(with_sinks.unflatten(-1, (-1, query.shape[-1]))[..., across.argsort(), :].flatten(-2))


ATTENTION = (
    Signature(name="qkv bias dropped", sentence="the {detail} bias is not added", on=LEAVES, guess=bias_dropped),
    Signature(
        name="qkv bias of rank 0", sentence="all ranks add rank 0's {detail} bias", on=LEAVES, guess=bias_of_rank_0
    ),
    Signature(
        name="qkv cut contiguously",
        sentence="the fused [query | key | value] rows are cut into {tp} slices instead of by head",
        on=LEAVES,
        guess=cut_contiguously,
    ),
    Signature(
        name="kv heads modulo",
        sentence="rank r has KV head r modulo the number of heads, instead of neighbours sharing one",
        on=("k_rope", "value"),
        guess=kv_modulo,
    ),
    Signature(name="sinks dropped", sentence="the sinks are {detail}", on=("heads",), guess=sinks_dropped),
    Signature(name="sinks of rank 0", sentence="all ranks use rank 0's sinks", on=("heads",), guess=sinks_of_rank_0),
    Signature(
        name="window missing", sentence="the window of {detail} tokens is missing", on=("heads",), guess=window_missing
    ),
    Signature(name="window length", sentence="the window is {detail}", on=("heads",), guess=window_length),
    Signature(name="not causal", sentence="queries see later keys", on=("heads",), guess=not_causal),
    Signature(
        name="softmax scale",
        sentence="scores are scaled by {detail} instead of 1 / sqrt(head_dim)",
        on=("heads",),
        guess=softmax_scale,
    ),
    Signature(
        name="kv heads tiled",
        sentence="a rank's query heads take its KV heads in turn instead of in blocks {detail}",
        on=("heads",),
        guess=heads_tiled,
    ),
)
