"""Sequence parallel: hidden states cut along the sequence between the sharded regions, against the same reference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from served_ranks import check, planned
from torch import Tensor

from tp_harness.models.gpt_oss.modules import attention, embedding, mlp, sequence
from tp_harness.models.gpt_oss.schedule import whole_model
from tp_harness.parallel.group import Group
from tp_harness.results.result import Collective

CONFIG = planned("sp")
PREFILL = [(8, 5, 3), (1, 1, 1), (1, 1, 1)]  # 8 tokens are cut, 1 token is whole on every rank


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("tp", [1, 2, 8])
def test_prefill_and_decode_are_the_forward_of_all_tokens(tp: int, side: str) -> None:
    check(CONFIG, PREFILL, tp, side)


def test_a_chunk_that_does_not_divide_is_whole_on_every_rank() -> None:
    kinds: list[Counter[str]] = []
    check(CONFIG, [(7, 5), (4, 2)], 2, see=lambda calls: kinds.append(Counter(call.kind for call in calls)))
    # 5 sums over ranks and a gather of logits in each call; the second also gathers before 4 regions and the logits
    assert kinds == [{"all_reduce": 5, "all_gather": 1 + 1 + 5, "reduce_scatter": 5}]


def test_the_planned_calls_are_those_of_a_prefill_and_of_a_decode() -> None:
    seen: list[tuple[Collective, ...]] = []
    check(CONFIG, PREFILL, 8, see=seen.append)
    run = partial(whole_model, replace(CONFIG, neuron_config=replace(CONFIG.neuron_config, batch_size=3)), 8)
    planned_calls = (*run(8), *run(1), *run(1))
    assert [(c.kind, c.shape, c.dtype) for c in seen[0]] == [(c.kind, c.shape, c.dtype) for c in planned_calls]


# -- negative proofs: each mistake is caught by the very comparison that passes above
def in_every_module(patch: pytest.MonkeyPatch, name: str, function: Callable[..., Any]) -> None:
    for module in (attention, mlp, embedding):
        patch.setattr(module, name, function)


def not_gathered(group: Group, x: Tensor, is_cut: bool) -> Tensor:
    return torch.cat([x] * group.size, dim=1) if is_cut else x


def other_order(group: Group, x: Tensor, is_cut: bool) -> Tensor:
    if not is_cut:
        return x
    parts = sequence.gathered(group, x, is_cut).unflatten(1, (group.size, -1))
    return parts.transpose(1, 2).flatten(1, 2)


def summed_again(group: Group, x: Tensor, is_cut: bool) -> Tensor:
    return sequence.summed(group, x * (group.size if is_cut else 1), is_cut)


def whole_bias(self: Any, x: Tensor, is_cut: bool) -> Tensor:
    return x[:, : x.shape[1] // self.size] if is_cut else x


@pytest.mark.parametrize(("name", "function"), [
    pytest.param("gathered", not_gathered, id="gather_missing"),
    pytest.param("gathered", other_order, id="shards_in_another_order"),
    pytest.param("summed", summed_again, id="summed_twice"),
])  # fmt: skip
def test_mistake_is_caught(monkeypatch: pytest.MonkeyPatch, name: str, function: Callable[..., Any]) -> None:
    in_every_module(monkeypatch, name, function)
    with pytest.raises(AssertionError):
        check(CONFIG, PREFILL, 2)


def test_the_bias_of_the_first_rank_s_tokens_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequence.OwnTokens, "forward", whole_bias)
    with pytest.raises(AssertionError):
        check(CONFIG, PREFILL, 2)
