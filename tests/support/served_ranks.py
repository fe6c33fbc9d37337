"""The sharded transformer with its caches on ranks of this process, held to the reference in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from exact_programs import on_ranks
from serving import VOCAB, WINDOW, assert_same, prompts, serve, served, stale_caches, weights, whole
from tp_harness.reference.kv_cache import KVCache

from tp_harness.config.model import NeuronConfig
from tp_harness.models.gpt_oss.config import InferenceConfig
from tp_harness.models.gpt_oss.modules import NeuronGPTOSSTransformer
from tp_harness.models.gpt_oss.modules.kv_cache import cache_placements
from tp_harness.parallel.group import Group
from tp_harness.parallel.mesh import Mesh, mesh_of
from tp_harness.parallel.placements import Placement
from tp_harness.results.result import Collective

# at 8 ranks, four neighbours hold the same KV head
CONFIG = InferenceConfig(
    num_hidden_layers=2, num_experts=4, experts_per_token=2, vocab_size=VOCAB, hidden_size=36, head_dim=16,
    intermediate_size=16, num_attention_heads=8, num_key_value_heads=2, sliding_window=WINDOW,
    neuron_config=NeuronConfig(seq_len=16, torch_dtype="float64"),
)  # fmt: skip
PLACEMENTS = cache_placements(CONFIG)


def planned(plan: str) -> InferenceConfig:
    """The same model under another plan."""
    return replace(CONFIG, neuron_config=replace(CONFIG.neuron_config, plan=plan))


@torch.no_grad()
def on_rank(config: InferenceConfig, group: Group) -> NeuronGPTOSSTransformer:
    """A rank's module, with its shards of the reference's weights."""
    module, plan = NeuronGPTOSSTransformer(config, group=group), NeuronGPTOSSTransformer.plan(config)
    for name, parameter in module.named_parameters():
        parameter.copy_(_local(plan[name], weights(CONFIG)[name], mesh_of(config.mesh(group.size), group), group))
    return module


def _local(placed: Any, full: torch.Tensor, mesh: Mesh, group: Group) -> torch.Tensor:
    if isinstance(placed, Placement):
        return placed.shard(full, group.rank, group.size)
    for axis, placement in placed.items():
        full = placement.shard(full, mesh.rank(axis), mesh.size(axis))
    return full


def shard(caches: tuple[KVCache, ...], group: Group) -> tuple[KVCache, ...]:
    """A rank's part of full caches."""

    def cut(cache: KVCache) -> KVCache:
        return KVCache(**{n: p.shard(getattr(cache, n), group.rank, group.size) for n, p in PLACEMENTS.items()})

    return tuple(map(cut, caches))


def join(ranks: Sequence[tuple[KVCache, ...]]) -> tuple[KVCache, ...]:
    """The full caches; replicas must agree bit for bit."""
    layers = zip(*ranks, strict=True)
    return tuple(KVCache(**{n: p.join([getattr(c, n) for c in of]) for n, p in PLACEMENTS.items()}) for of in layers)


def check(
    config: InferenceConfig,
    calls: Sequence[Sequence[int]],
    tp: int,
    side: str = "right",
    see: Callable[[tuple[Collective, ...]], Any] = lambda calls: None,
) -> None:
    """Logits are those of the whole forward on every rank, caches those of the reference in the same calls.

    `see` is given what rank 0 called.
    """
    lengths = [sum(counts) for counts in zip(*calls, strict=True)]
    rows, past = prompts(lengths), stale_caches(CONFIG, len(lengths), max(lengths))
    recorded = {}

    def be(group: Group) -> Any:
        result = serve(on_rank(config, group), rows, calls, shard(past, group), side=side)
        recorded[group.rank] = group.take_calls()
        return result

    ranks = on_ranks(be, tp)
    see(recorded[0])
    for logits, _ in ranks:
        for actual, tokens in zip(logits, rows, strict=True):
            assert_same(actual, whole(CONFIG, tokens))
    _, expected = serve(served(CONFIG), rows, calls, past, side=side)
    for cache, right in zip(join([caches for _, caches in ranks]), expected, strict=True):
        assert torch.equal(cache.positions, right.positions)
        assert_same(cache.key, right.key)
        assert_same(cache.value, right.value)
