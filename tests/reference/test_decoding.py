"""The reference with a KV cache against itself without one, and against transformers' gpt-oss with its own cache."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from serving import (
    CALLS,
    STEP,
    VOCAB,
    WINDOW,
    assert_same,
    padded,
    prompts,
    serve,
    served,
    stale_caches,
    unpadded,
    whole,
)
from torch import Tensor
from tp_harness.reference import decoding, kv_cache
from tp_harness.reference.gpt_oss import ModelConfig
from tp_harness.reference.kv_cache import EMPTY, KVCache

TINY = ModelConfig(
    num_hidden_layers=3, num_experts=4, experts_per_token=2, vocab_size=VOCAB, hidden_size=36, head_dim=16,
    intermediate_size=20, num_attention_heads=4, num_key_value_heads=2, sliding_window=WINDOW,
)  # fmt: skip


def caches(batch: int, length: int) -> tuple[KVCache, ...]:
    return stale_caches(TINY, batch, length)


def assert_whole(logits: list[Tensor], rows: list[Tensor], begun: int = 0) -> None:
    """The logits of tokens decoded in calls are those of each row in one forward without a cache."""
    for actual, tokens in zip(logits, rows, strict=True):
        assert_same(actual, whole(TINY, tokens)[begun:])


def check_calls(calls: Sequence[Sequence[int]], side: str, spare: int = 0) -> None:
    lengths = [sum(counts) for counts in zip(*calls, strict=True)]
    rows = prompts(lengths)
    logits, _ = serve(served(TINY), rows, calls, caches(len(rows), max(lengths) + spare), side=side)
    assert_whole(logits, rows)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("calls", [pytest.param(calls, id=name) for name, calls in CALLS])
def test_calls_are_the_forward_of_all_tokens(calls: Sequence[Sequence[int]], side: str) -> None:
    check_calls(calls, side)


def test_slots_to_spare_change_nothing() -> None:
    check_calls([(7, 3), (1, 1)], "right", spare=9)


def check_reuse(length: int, shared: int) -> None:
    """A second request shares its first tokens with row 0 of the first, another begins where row 1 was."""
    first = prompts([length, length - 1])
    _, past = serve(served(TINY), first, [(length, length - 1)], caches(2, 16))
    [own] = prompts([9], seed=9)
    second = [torch.cat((first[0][:shared], own)), own[:7]]
    reuse = torch.tensor([0, 1]), torch.tensor([shared, 0])
    logits, _ = serve(served(TINY), second, [(4, 3), (4, 3), (1, 1)], past, begun=[shared, 0], reuse=reuse)
    assert_whole(logits[:1], second[:1], begun=shared)
    assert_whole(logits[1:], second[1:])


@pytest.mark.parametrize(("length", "shared"), [(4, 2), (5, 1), (7, 7), (7, 6)])
def test_a_request_reuses_the_prefix_of_another(length: int, shared: int) -> None:
    check_reuse(length, shared)


def test_rows_that_share_one_prefix() -> None:
    [prefix] = prompts([6])
    _, past = serve(served(TINY), [prefix], [(6,)], caches(1, 12))
    second = [torch.cat((prefix, tokens)) for tokens in prompts([4, 3, 4], seed=1)]
    reuse = torch.tensor([0, 0, 0]), torch.tensor([6, 6, 6])
    logits, _ = serve(served(TINY), second, [(3, 2, 3), STEP], past, begun=[6, 6, 6], reuse=reuse)
    assert_whole(logits, second, begun=6)


def test_no_call_writes_to_a_slot_of_padding_or_of_an_earlier_value() -> None:
    before = caches(2, 8)
    kept = copy.deepcopy(before)
    decoded = served(TINY)(
        torch.tensor([[4, 5, 6], [7, 8, 9]]), torch.tensor([[0, 1, EMPTY], [EMPTY, EMPTY, 0]]), before
    )
    for cache, old, new in zip(before, kept, decoded.past, strict=True):
        assert torch.equal(cache.key, old.key)
        assert torch.equal(cache.positions, old.positions)
        spare = [EMPTY] * (old.positions.shape[1] - 2)
        assert new.positions.tolist() == [[0, 1, *spare], [0, EMPTY, *spare]]
        untouched = new.positions == EMPTY
        assert torch.equal(new.key[untouched], old.key[untouched])
        assert torch.equal(new.value[untouched], old.value[untouched])


def test_what_padding_returns_is_of_its_own_token_alone() -> None:
    model = served(TINY)
    outputs = [model(torch.tensor([[a, 3]]), torch.tensor([[0, EMPTY]]), caches(1, 4)).logits[0, 1] for a in (5, 17)]
    torch.testing.assert_close(*outputs, rtol=1e-12, atol=1e-12)  # float64: experts get other numbers of tokens


def test_a_position_beyond_the_last_slot_is_refused() -> None:
    with pytest.raises(ValueError, match="position 8 is beyond the last of 8 slots"):
        served(TINY)(torch.tensor([[1]]), torch.tensor([[8]]), caches(1, 8))
    with pytest.raises(ValueError, match="position 4 is beyond the last of 4 slots"):  # its ring would be too short
        served(TINY)(torch.tensor([[1]]), torch.tensor([[4]]), caches(1, 4))


def check_transformers() -> None:
    """Ragged prompts, padded left as transformers wants them, then five steps, past the window."""
    hf_twin, transformers = pytest.importorskip("hf_twin"), pytest.importorskip("transformers")
    ours, theirs = hf_twin.pair(TINY, torch.float32)
    single = decoding.Transformer(TINY).float().requires_grad_(False)
    single.load_state_dict(ours.state_dict())
    calls = [(7, 3, 1), *[STEP] * 5]
    rows = prompts([12, 8, 6])
    logits, _ = serve(single, rows, calls, decoding.empty_caches(TINY, 3, 12, torch.float32), side="left")
    cache, at, expected = transformers.DynamicCache(config=theirs.config), [0, 0, 0], [[] for _ in rows]
    mask = torch.zeros(3, 0, dtype=torch.long)
    for counts in calls:
        spans = [torch.arange(start, start + count) for start, count in zip(at, counts, strict=True)]
        tokens = padded([row[span] for row, span in zip(rows, spans, strict=True)], "left", 3)
        mask = torch.cat((mask, padded([torch.ones_like(span) for span in spans], "left", 0)), dim=1)
        positions = padded(spans, "left", 0)
        out = theirs(tokens, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True)
        at = [start + count for start, count in zip(at, counts, strict=True)]
        for parts, part in zip(expected, unpadded(out.logits, counts, "left"), strict=True):
            parts.append(part)
    for row, parts in zip(logits, expected, strict=True):
        assert_same(row, torch.cat(parts), 1e-4)  # float32, their angles too


def test_calls_match_transformers_with_its_own_cache() -> None:
    check_transformers()


# -- negative proofs: each mistake is caught by the very comparison that passes above
WRITTEN, EXTENDED, VISIBLE, REUSED = kv_cache.written, kv_cache.extended, kv_cache.visible_keys, kv_cache.reused


def _calls(name: str, side: str = "right") -> Callable[[], None]:
    return lambda: check_calls(dict(CALLS)[name], side)


def _late_extended(cache: KVCache, key: Tensor, value: Tensor, positions: Tensor) -> KVCache:
    return EXTENDED(WRITTEN(cache, key, value, positions), key[:, :0], value[:, :0], positions[:, :0])


MISTAKES = (
    ("padding_written", _calls("ragged"), "written", lambda c, k, v, at: WRITTEN(c, k, v, at.clamp(min=0))),
    ("empty_slots_seen", _calls("from_nothing"), "visible_keys", lambda q, k, w: VISIBLE(q, k.clamp(min=0), w)),
    ("window_plus_1", _calls("the_window"), "visible_keys", lambda q, k, w: VISIBLE(q, k, w and w + 1)),
    ("first_of_a_chunk_kept", _calls("a_chunk_longer_than_the_ring"), "written",
     lambda c, k, v, at: WRITTEN(c, *(x[:, : c.positions.shape[1]] for x in (k, v, at)))),
    ("written_before_seen", _calls("a_chunk_longer_than_the_ring"), "extended", _late_extended),
    ("position_off_by_the_padding", _calls("ragged"), "written",
     lambda c, k, v, at: WRITTEN(c, k, v, torch.where(at < 0, at, at + (at < 0).sum(1, keepdim=True)))),
    ("only_row_0", _calls("ragged"), "written",
     lambda c, k, v, at: WRITTEN(c, k, v, torch.cat((at[:1], torch.full_like(at[1:], EMPTY))))),
    ("stale_slots_of_another", lambda: check_reuse(7, 7), "reused", lambda c, rows, n: REUSED(c, rows, n + 99)),
    ("prefix_of_another", lambda: check_reuse(7, 6), "reused", lambda c, rows, n: REUSED(c, rows.flip(0), n)),
    ("window_of_transformers", check_transformers, "visible_keys", lambda q, k, w: VISIBLE(q, k, w and w - 1)),
)  # fmt: skip


@pytest.mark.parametrize("mistake", [pytest.param(mistake, id=name) for name, *mistake in MISTAKES])
def test_mistake_is_caught(monkeypatch: pytest.MonkeyPatch, mistake: list[Any]) -> None:
    check, function, replacement = mistake
    monkeypatch.setattr(decoding, function, replacement)
    with pytest.raises(AssertionError, match="not close"):
        check()
