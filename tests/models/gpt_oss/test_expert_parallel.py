"""Expert parallel, with all tokens on every rank or exchanged by all_to_all, against the same reference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from served_ranks import check, planned
from torch import Tensor

from tp_harness.models.gpt_oss.modules import expert_parallel, mlp
from tp_harness.parallel.group import Group

PREFILL = [(8, 5, 3), (1, 1, 1), (1, 1, 1)]  # the tokens of a prefill divide over the ranks, those of a decode do not


@pytest.mark.parametrize("plan", ["ep", "ep-tp"])
@pytest.mark.parametrize("tp", [1, 2, 4, 8])
def test_prefill_and_decode_are_the_forward_of_all_tokens(plan: str, tp: int) -> None:
    check(planned(plan), PREFILL, tp)


@pytest.mark.parametrize(("plan", "meshes"), [
    ("ep", {2: (2, 1), 4: (4, 1), 8: (4, 2)}), ("ep-tp", {1: (1, 1), 2: (1, 2), 4: (2, 2), 8: (4, 2)}),
])  # fmt: skip
def test_the_mesh_has_as_many_ranks_along_ep_as_the_four_experts_allow(plan: str, meshes: dict[int, Any]) -> None:
    assert {ranks: tuple(planned(plan).mesh(ranks).values()) for ranks in meshes} == meshes


@pytest.mark.parametrize(("plan", "expected"), [
    # two calls for each of 2 layers in the prefill of plan ep; sums over all ranks in decodes, and in plan ep-tp
    ("ep", {("all_to_all", 4): 4, ("reduce_scatter", 2): 2}), ("ep-tp", {}),
])  # fmt: skip
def test_tokens_are_exchanged_along_ep_and_summed_along_tp(plan: str, expected: dict[tuple[str, int], int]) -> None:
    found: Counter[tuple[str, int]] = Counter()
    check(planned(plan), PREFILL[:1], 8, see=lambda calls: found.update((c.kind, c.group_size) for c in calls))
    own = {key: count for key, count in found.items() if key[0] == "all_to_all" or key == ("reduce_scatter", 2)}
    assert own == expected


# -- negative proofs: each mistake is caught by the very comparison that passes above
def in_arrival_order(group: Group, partial: Tensor) -> Tensor:
    """Every row's outputs as if the row after it had sent them."""
    return expert_parallel.combined(group, partial.unflatten(1, (group.size, -1)).roll(1, 1).flatten(1, 2))


def dropped(group: Group, t: Tensor, weights: Tensor) -> Tensor:
    """The last row has capacity for all but its last token."""
    weights = torch.cat((weights[:, :-1], torch.zeros_like(weights[:, -1:])), 1)
    return expert_parallel.dispatched(group, t, weights)


def transposed(group: Group, t: Tensor, weights: Tensor) -> Tensor:
    """What is meant for the first row goes to the last."""
    rows = weights.unflatten(-1, (group.size, -1)).flip(-2).flatten(-2)
    return expert_parallel.dispatched(group, t, rows)


@pytest.mark.parametrize(("name", "function"), [
    ("combined", in_arrival_order), ("dispatched", dropped), ("dispatched", transposed),
])  # fmt: skip
def test_a_wrong_exchange_is_caught(monkeypatch: pytest.MonkeyPatch, name: str, function: Callable[..., Any]) -> None:
    monkeypatch.setattr(mlp, name, function)
    with pytest.raises(AssertionError, match="not close"):
        check(planned("ep"), PREFILL, 2)


@pytest.mark.parametrize("plan", ["ep", "ep-tp"])
def test_the_weights_of_other_experts_are_caught(monkeypatch: pytest.MonkeyPatch, plan: str) -> None:
    local = expert_parallel.LocalExperts
    monkeypatch.setattr(local, "forward", lambda self, weights: weights[:, : self.count])
    with pytest.raises(AssertionError, match="not close"):
        check(planned(plan), PREFILL, 4)
