"""Ways for a sharded module to be wrong, as changes to the real ones; test_judge_faults.py says which and where.

Each returns a function of pytest's monkeypatch. What a rank recorded of its shards stays right, so that only
what it computes is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from ladder import ThreadGroup, after_build, put
from torch import nn

from tp_harness.case.case import Case
from tp_harness.checkpoint.checkpoint import Checkpoint
from tp_harness.models.gpt_oss.modules import attention, embedding, mlp, norm
from tp_harness.parallel.group import Group
from tp_harness.parallel.placements import QKVHeads

Apply = Callable[[pytest.MonkeyPatch], object]
Shards = Callable[[torch.Tensor, int, int], torch.Tensor]
QKV = QKVHeads(64, 8, 16)
all_reduce = ThreadGroup._all_reduce


def loads(name: str, wrong: Shards) -> Apply:
    """After the right shard was loaded and recorded, compute with `wrong(full, rank, size)`."""

    def edit(module: nn.Module, case: Case, checkpoint: Checkpoint, group: Group) -> None:
        put(module, name, wrong(checkpoint.tensor(case.prefix + name), group.rank, group.size))

    return lambda patch: after_build(patch, edit)


def sets(owner: str, value: Callable[[Any, int, int], dict[str, object]]) -> Apply:
    """Set attributes of a built submodule to `value(submodule, rank, size)`."""

    def edit(module: nn.Module, _case: Case, _checkpoint: Checkpoint, group: Group) -> None:
        submodule = module.get_submodule(owner)
        for name, new in value(submodule, group.rank, group.size).items():
            setattr(submodule, name, new)

    return lambda patch: after_build(patch, edit)


def runs(owner: object, name: str, code: object) -> Apply:
    """Other code, or another constant, in the place of an attribute."""
    return lambda patch: patch.setattr(owner, name, code)


def all_of(*ways: Apply) -> Apply:
    return lambda patch: [way(patch) for way in ways]


def reduces(wrong: Callable[[Any, torch.Tensor], torch.Tensor]) -> Apply:
    """Every all_reduce is recorded as one, and gives `wrong(group, x)`."""
    return runs(ThreadGroup, "_all_reduce", wrong)


def sum_of_pair(group: ThreadGroup, x: torch.Tensor) -> torch.Tensor:
    first = group.rank // 2 * 2
    return torch.stack(group.exchange(x)[first : first + 2]).sum(0)


def with_axes_swapped(group: ThreadGroup, x: torch.Tensor) -> torch.Tensor:
    return all_reduce(group, x.transpose(0, 1).contiguous()).view(x.shape)


def add_residual(module: Any, _case: Case, _checkpoint: Checkpoint, _group: Group) -> None:
    """Every rank adds the residual to its part of the sum."""
    module.norm.register_forward_pre_hook(lambda _module, inputs: setattr(module, "kept", inputs[0]))
    module.partial.register_forward_hook(lambda _module, _inputs, output: output + module.kept)


# attention


def qkv_with(part: int, other: Shards) -> Shards:
    """The rank's fused projection with its query, key or value rows (0, 1, 2) from another shard of it."""

    def wrong(full: torch.Tensor, rank: int, size: int) -> torch.Tensor:
        rows = [64 // size * 16, *[max(1, 8 // size) * 16] * 2]
        pieces = list(QKV.shard(full, rank, size).split(rows))
        pieces[part] = other(full, rank, size).split(rows)[part]
        return torch.cat(pieces)

    return wrong


def modulo(full: torch.Tensor, rank: int, size: int) -> torch.Tensor:
    """KV head rank % 8 instead of rank // (size / 8)."""
    return QKV.shard(full, rank % 8 * (size // 8), size)


def tiled(self: Any, t: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Query heads 0, 1, 2 with KV heads 0, 1, 0 rather than 0, 0, 0."""
    query, key, value = self._split(self.qkv(t))
    query, key = self.rope(query, key, positions)
    return query.unflatten(2, (-1, self.local_kv_heads)).transpose(2, 3), key, value


def interleaved(_self: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x[..., ::2], x[..., 1::2]
    return torch.stack((first * cos - second * sin, second * cos + first * sin), dim=-1).flatten(-2)


def query_only(self: Any, query: torch.Tensor, key: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return self._rotate(query, self.cos[ids][:, :, None], self.sin[ids][:, :, None]), key


def shifted_tables(module: Any, rank: int, _size: int) -> dict[str, object]:
    return {"cos": module.cos.roll(-rank, 0), "sin": module.sin.roll(-rank, 0)}


def window(tokens: int) -> Apply:
    return sets("", lambda module, rank, size: {"window": tokens})


def softmax_scale(value: Callable[[Any], float]) -> Apply:
    return sets("", lambda module, rank, size: {"softmax_scale": value(module)})


# norm, experts, embedding


def norm_by(mean_square: Callable[[torch.Tensor], torch.Tensor]) -> Apply:
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(mean_square(x).to(x.dtype) + 1e-5) * self.scale

    return runs(norm.NeuronGPTOSSRMSNorm, "forward", forward)


def swiglu(
    *, lowest: float = -math.inf, highest: float = 7.0, alpha: float = 1.702, one: float = 1.0, layout: str = "pairs"
) -> Apply:
    """The activation with another bound, constant, or order of gates and ups."""

    def activation(_self: object, x: torch.Tensor) -> torch.Tensor:
        pair = x.chunk(2, -1) if layout == "halves" else x.unflatten(-1, (-1, 2)).unbind(-1)
        gate, up = pair[::-1] if layout == "swapped" else pair
        gate, up = gate.clamp(lowest, highest), up.clamp(-highest, highest)
        return gate * torch.sigmoid(alpha * gate) * (up + one)

    return runs(mlp.NeuronGPTOSSMLPBlock, "_swiglu", activation)


def softmax_over_all(self: Any, t: torch.Tensor) -> torch.Tensor:
    logits = self.router_logits(self.gate(t))
    chosen = self.chosen(torch.topk(logits, 4).indices)
    return torch.zeros_like(logits).scatter(-1, chosen, torch.softmax(logits, -1).gather(-1, chosen))


def bias_unweighted(self: Any, x: torch.Tensor) -> torch.Tensor:
    t = self.norm(x.flatten(0, -2))
    weights = self._route(t)
    bias = (weights > 0).to(x.dtype) @ self.mlp2_bias.to(x.dtype)
    return x + (self.group.all_reduce(self._experts(t, weights)) + bias).view(x.shape)


def looks_up(held: Callable[[torch.Tensor, int], torch.Tensor | bool]) -> Apply:
    def forward(self: Any, tokens: torch.Tensor) -> torch.Tensor:
        local, count = tokens - self.vocab_start, len(self.weight)
        mask = torch.as_tensor(held(local, count)).expand(local.shape)
        return self.group.all_reduce(self.weight[local.clamp(0, count - 1)].to(self.dtype) * mask[..., None])

    return runs(embedding.NeuronGPTOSSEmbedding, "forward", forward)


def code_of(name: str, code: object) -> Apply:
    """Another method of the attention block or, where that has none of the name, of the experts."""
    blocks = (attention.NeuronGPTOSSAttentionBlock, mlp.NeuronGPTOSSMLPBlock)
    return runs(next(block for block in blocks if name in vars(block)), name, code)
