"""The reference with a KV cache against itself without one, and against transformers' gpt-oss with its own cache."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from serving import padded, serve, stale, unpadded
from torch import Tensor
from tp_harness.reference import decoding, gpt_oss, kv_cache
from tp_harness.reference.gpt_oss import ModelConfig
from tp_harness.reference.kv_cache import EMPTY, KVCache

transformers = pytest.importorskip("transformers")
from hf_twin import filled, pair, randn  # noqa: E402  (needs transformers)

WINDOW = 5
TINY = ModelConfig(
    num_hidden_layers=3, num_experts=4, experts_per_token=2, vocab_size=61, hidden_size=36, head_dim=16,
    intermediate_size=20, num_attention_heads=4, num_key_value_heads=2, sliding_window=WINDOW,
)  # fmt: skip
STEP = (1, 1, 1)
CALLS = (  # id, tokens of each row in each call
    ("one_token", [(1,)]),
    ("the_window", [(WINDOW,), (1,), (1,)]),
    ("window_plus_1", [(WINDOW + 1,), (1,), (1,)]),
    ("from_nothing", [(1,)] * (WINDOW + 2)),
    ("ragged", [(7, 3, 1), STEP, STEP, STEP]),
    ("a_row_ends", [(4, 6, 2), (1, 1, 1), (0, 1, 1), (0, 0, 1)]),
    ("a_row_begins_later", [(4, 6, 0), (1, 1, 3), STEP]),
    ("chunks", [(4, 4), (4, 3), (3, 0), (1, 1)]),
    ("a_chunk_longer_than_the_ring", [(3, 2), (WINDOW + 4, WINDOW + 1), (2, 2)]),
)


def model() -> decoding.Transformer:
    served = decoding.Transformer(TINY)
    served.load_state_dict(filled(TINY).state_dict())
    return served.double().requires_grad_(False)


def prompts(lengths: Sequence[int]) -> list[Tensor]:
    return [(randn(length, seed=row).abs() * 1000).long() % TINY.vocab_size for row, length in enumerate(lengths)]


def caches(batch: int, length: int) -> tuple[KVCache, ...]:
    return stale(decoding.empty_caches(TINY, batch, length, torch.float64))


def assert_whole(served: decoding.Transformer, logits: list[Tensor], rows: list[Tensor], begun: int = 0) -> None:
    """The logits of tokens decoded in calls are those of each row in one forward without a cache."""
    plain = gpt_oss.Transformer(TINY).double()
    plain.load_state_dict(served.state_dict())
    for actual, tokens in zip(logits, rows, strict=True):
        expected = plain(tokens)[begun:]
        assert len(expected)
        assert expected.isfinite().all()  # float64: some hundred roundings of numbers up to the largest
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12 * expected.abs().max().item())


def check_calls(calls: Sequence[Sequence[int]], side: str, spare: int = 0) -> None:
    served, lengths = model(), [sum(counts) for counts in zip(*calls, strict=True)]
    rows = prompts(lengths)
    logits, _ = serve(served, rows, calls, caches(len(rows), max(lengths) + spare), side=side)
    assert_whole(served, logits, rows)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("calls", [pytest.param(calls, id=name) for name, calls in CALLS])
def test_calls_are_the_forward_of_all_tokens(calls: Sequence[Sequence[int]], side: str) -> None:
    check_calls(calls, side, spare=0)  # the caches are full after the last call


def test_slots_to_spare_change_nothing() -> None:
    check_calls([(7, 3), (1, 1)], "right", spare=9)


def check_reuse(length: int, shared: int) -> None:
    """A second request shares its first tokens with row 0 of the first, another begins where row 1 was."""
    served, first = model(), prompts([length, length - 1])
    _, past = serve(served, first, [(length, length - 1)], caches(2, 16))
    own = (randn(9, seed=9).abs() * 1000).long() % TINY.vocab_size
    second = [torch.cat((first[0][:shared], own)), own[:7]]
    reused = torch.tensor([0, 1]), torch.tensor([shared, 0])
    logits, _ = serve(served, second, [(4, 3), (4, 3), (1, 1)], past, begun=[shared, 0], reused=reused)
    assert_whole(served, logits[:1], second[:1], begun=shared)
    assert_whole(served, logits[1:], second[1:])


@pytest.mark.parametrize(("length", "shared"), [(4, 2), (5, 1), (7, 7), (7, 6)])
def test_a_request_reuses_the_prefix_of_another(length: int, shared: int) -> None:
    check_reuse(length, shared)


def test_rows_that_share_one_prefix() -> None:
    served, [prefix] = model(), prompts([6])
    _, past = serve(served, [prefix], [(6,)], caches(1, 12))
    second = [torch.cat((prefix, tokens)) for tokens in prompts([4, 3, 4])]
    reused = torch.tensor([0, 0, 0]), torch.tensor([6, 6, 6])
    logits, _ = serve(served, second, [(3, 2, 3), STEP], past, begun=[6, 6, 6], reused=reused)
    assert_whole(served, logits, second, begun=6)


def test_no_call_writes_to_a_slot_of_padding_or_of_an_earlier_value() -> None:
    served, before = model(), caches(2, 8)
    kept = copy.deepcopy(before)
    decoded = served(torch.tensor([[4, 5, 6], [7, 8, 9]]), torch.tensor([[0, 1, EMPTY], [EMPTY, EMPTY, 0]]), before)
    for cache, old, new in zip(before, kept, decoded.past, strict=True):
        assert torch.equal(cache.key, old.key)
        assert torch.equal(cache.positions, old.positions)
        spare = [EMPTY] * (old.positions.shape[1] - 2)
        assert new.positions.tolist() == [[0, 1, *spare], [0, EMPTY, *spare]]
        untouched = new.positions == EMPTY
        assert torch.equal(new.key[untouched], old.key[untouched])
        assert torch.equal(new.value[untouched], old.value[untouched])


def test_what_padding_returns_is_of_its_own_token_alone() -> None:
    served = model()
    outputs = [served(torch.tensor([[a, 3]]), torch.tensor([[0, EMPTY]]), caches(1, 4)).logits[0, 1] for a in (5, 17)]
    torch.testing.assert_close(*outputs, rtol=1e-12, atol=1e-12)  # float64: experts get other numbers of tokens


def test_a_position_beyond_the_last_slot_is_refused() -> None:
    with pytest.raises(ValueError, match="position 8 is beyond the last of 8 slots"):
        model()(torch.tensor([[1]]), torch.tensor([[8]]), caches(1, 8))
    with pytest.raises(ValueError, match="position 4 is beyond the last of 4 slots"):  # its ring would be too short
        model()(torch.tensor([[1]]), torch.tensor([[4]]), caches(1, 4))


def check_transformers() -> None:
    """Ragged prompts, padded left as transformers wants them, then five steps, past the window."""
    ours, theirs = pair(TINY, torch.float32)
    served = decoding.Transformer(TINY).requires_grad_(False)
    served.load_state_dict(ours.float().state_dict())
    served.float()
    calls = [(7, 3, 1), *[STEP] * 5]
    rows = prompts([12, 8, 6])
    logits, _ = serve(served, rows, calls, decoding.empty_caches(TINY, 3, 12, torch.float32), side="left")
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
        torch.testing.assert_close(row, torch.cat(parts), rtol=0, atol=1e-4 * row.abs().max().item())  # their angles


def test_calls_match_transformers_with_its_own_cache() -> None:
    check_transformers()


# -- negative proofs: each mistake is caught by the very comparison that passes above
WRITE, EXTEND, VISIBLE, REUSE = kv_cache.write, kv_cache.extend, kv_cache.visible_keys, kv_cache.reuse


def _calls(name: str, side: str = "right") -> Callable[[], None]:
    return lambda: check_calls(dict(CALLS)[name], side)


def _late_extend(cache: KVCache, key: Tensor, value: Tensor, positions: Tensor) -> KVCache:
    return EXTEND(WRITE(cache, key, value, positions), key[:, :0], value[:, :0], positions[:, :0])


MISTAKES = (
    ("padding_written", _calls("ragged"), "write", lambda c, k, v, at: WRITE(c, k, v, at.clamp(min=0))),
    ("empty_slots_seen", _calls("from_nothing"), "visible_keys", lambda q, k, w: VISIBLE(q, k.clamp(min=0), w)),
    ("window_plus_1", _calls("the_window"), "visible_keys", lambda q, k, w: VISIBLE(q, k, w and w + 1)),
    ("first_of_a_chunk_kept", _calls("a_chunk_longer_than_the_ring"), "write",
     lambda c, k, v, at: WRITE(c, *(x[:, : c.positions.shape[1]] for x in (k, v, at)))),
    ("written_before_seen", _calls("a_chunk_longer_than_the_ring"), "extend", _late_extend),
    ("position_off_by_the_padding", _calls("ragged"), "write",
     lambda c, k, v, at: WRITE(c, k, v, torch.where(at < 0, at, at + (at < 0).sum(1, keepdim=True)))),
    ("only_row_0", _calls("ragged"), "write",
     lambda c, k, v, at: WRITE(c, k, v, torch.cat((at[:1], torch.full_like(at[1:], EMPTY))))),
    ("stale_slots_of_another", lambda: check_reuse(7, 7), "reuse", lambda c, rows, n: REUSE(c, rows, n + 99)),
    ("prefix_of_another", lambda: check_reuse(7, 6), "reuse", lambda c, rows, n: REUSE(c, rows.flip(0), n)),
    ("window_of_transformers", check_transformers, "visible_keys", lambda q, k, w: VISIBLE(q, k, w and w - 1)),
)  # fmt: skip


@pytest.mark.parametrize("mistake", [pytest.param(mistake, id=name) for name, *mistake in MISTAKES])
def test_mistake_is_caught(monkeypatch: pytest.MonkeyPatch, mistake: list[Any]) -> None:
    check, function, replacement = mistake
    monkeypatch.setattr(decoding, function, replacement)
    with pytest.raises(AssertionError, match="not close"):
        check()
