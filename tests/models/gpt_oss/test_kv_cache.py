"""The sharded model with a KV cache, step by step on several ranks, against its reference all at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from exact_programs import on_ranks
from served_ranks import CONFIG, check, on_rank, shard
from serving import CALLS, WINDOW, assert_same, prompts, serve, stale_caches, whole
from torch import Tensor
from tp_harness.reference.kv_cache import EMPTY, KVCache

from tp_harness.models.gpt_oss.modules import NeuronGPTOSSAttentionBlock, attention
from tp_harness.models.gpt_oss.modules import kv_cache as sharded_cache
from tp_harness.parallel.group import Group

DEGREES = (1, 2, 8)


@pytest.mark.parametrize("tp", DEGREES)
@pytest.mark.parametrize(("calls", "side"), [
    *(pytest.param(calls, "right", id=name) for name, calls in CALLS),
    pytest.param(dict(CALLS)["ragged"], "left", id="ragged_left"),
])  # fmt: skip
def test_calls_are_the_forward_of_all_tokens(calls: Sequence[Sequence[int]], side: str, tp: int) -> None:
    check(CONFIG, calls, tp, side)


def check_reuse(tp: int, length: int, shared: int) -> None:
    """A second request shares its first tokens with row 0 of the first, another begins where row 1 was."""
    first, [own] = prompts([length, length - 1]), prompts([9], seed=9)
    second = [torch.cat((first[0][:shared], own)), own[:7]]
    reuse = torch.tensor([0, 1]), torch.tensor([shared, 0])

    def be(group: Group) -> list[Tensor]:
        module = on_rank(CONFIG, group)
        _, past = serve(module, first, [(length, length - 1)], shard(stale_caches(CONFIG, 2, 16), group))
        return serve(module, second, [(4, 3), (5, 4)], past, begun=[shared, 0], reuse=reuse)[0]

    for logits in on_ranks(be, tp):
        for actual, tokens in zip(logits, second, strict=True):
            assert_same(actual, whole(CONFIG, tokens)[-len(actual) :])


@pytest.mark.parametrize("tp", DEGREES)
@pytest.mark.parametrize(("length", "shared"), [(4, 2), (7, 6)])
def test_a_request_reuses_the_prefix_of_another(length: int, shared: int, tp: int) -> None:
    check_reuse(tp, length, shared)


def test_empty_slots_keep_their_bits_and_padding_sees_no_other_token() -> None:
    module = on_rank(CONFIG, Group())
    before = stale_caches(CONFIG, 2, 8)
    positions = torch.tensor([[0, 1, EMPTY], [EMPTY, EMPTY, 0]])
    after = [module(torch.tensor([[a, 6, 3], [7, 3, 8]]), positions, before) for a in (4, 21)]
    for old, new in zip(before, after[0].past, strict=True):
        untouched = new.positions == EMPTY
        assert untouched.sum() == 2 * old.positions.shape[1] - 3
        assert torch.equal(new.key[untouched], old.key[untouched])
        assert torch.equal(new.value[untouched], old.value[untouched])
    assert_same(after[0].logits[0, 2], after[1].logits[0, 2])
    assert not torch.equal(after[0].logits[0, 1], after[1].logits[0, 1])


def test_without_a_cache_the_forward_is_what_it_was_with_all_tokens_on_an_empty_one() -> None:
    block = NeuronGPTOSSAttentionBlock(CONFIG, 0)
    x, positions = torch.randn(2, 7, 36).double(), torch.arange(7).expand(2, 7)
    y, _ = block(x, positions, stale_caches(CONFIG, 2, 16)[0])
    assert_same(y, block(x, positions))


# -- negative proofs: each mistake is caught by the very comparison that passes above
WRITTEN, REUSED = sharded_cache.written, sharded_cache.reused
VISIBLE = NeuronGPTOSSAttentionBlock._visible


def at(change: Callable[[Tensor], Tensor]) -> Any:
    """A cache written with other positions of the new tokens."""
    return lambda cache, new: WRITTEN(cache, KVCache(new.key, new.value, change(new.positions)))


def calls_of(name: str, tp: int = 1) -> Callable[[], None]:
    return partial(check, CONFIG, dict(CALLS)[name], tp)


def without_kv_heads(cache: KVCache, new: KVCache) -> KVCache:
    """Every rank writes what is in the place of the first KV head's."""
    return WRITTEN(cache, KVCache(new.key[:, :, :1].expand_as(new.key), new.value, new.positions))


MISTAKES = (
    ("padding_written", calls_of("ragged"), attention, "written", at(lambda x: x.clamp(min=0))),
    ("ring_of_another_length", calls_of("the_window"), attention, "written", at(lambda x: x + (x >= WINDOW))),
    ("only_row_0", calls_of("ragged"), attention, "written",
     at(lambda x: torch.cat((x[:1], torch.full_like(x[1:], EMPTY))))),
    ("one_kv_head_for_all", calls_of("ragged"), attention, "written", without_kv_heads),
    ("window_plus_1", calls_of("the_window"), NeuronGPTOSSAttentionBlock, "_visible",
     lambda self, q, k: VISIBLE(self, q - 1, k) | (q[:, :, None] == k[:, None])),
    ("empty_slots_seen", calls_of("from_nothing"), NeuronGPTOSSAttentionBlock, "_visible",
     lambda self, q, k: VISIBLE(self, q, k.clamp(min=0))),
    ("prefix_of_another", lambda: check_reuse(2, 7, 6), sharded_cache, "reused",
     lambda c, rows, n: REUSED(c, rows.flip(0), n)),
    ("stale_slots", lambda: check_reuse(2, 7, 6), sharded_cache, "reused", lambda c, rows, n: REUSED(c, rows, n + 99)),
)  # fmt: skip


@pytest.mark.parametrize("mistake", [pytest.param(mistake, id=name) for name, *mistake in MISTAKES])
def test_mistake_is_caught(monkeypatch: pytest.MonkeyPatch, mistake: list[Any]) -> None:
    checked, owner, function, replacement = mistake
    monkeypatch.setattr(owner, function, replacement)
    if owner is sharded_cache:
        monkeypatch.setattr("tp_harness.models.gpt_oss.modules.transformer." + function, replacement)
    with pytest.raises(AssertionError):
        checked()
