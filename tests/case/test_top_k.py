"""Top-k choices: a margin of 0 says that a choice follows, and any other how far scores must move."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tp_harness.case.ranking_calls import Ranked, RankingCalls
from tp_harness.case.taps import same_choice
from tp_harness.case.top_k import ONE_GROUP, Groups, margins, top_k
from tp_harness.parallel.placements import same_bits

GROUPS = [ONE_GROUP, Groups(4, 2, 1), Groups(4, 2, 2), Groups(2, 1, 3)]


@pytest.mark.parametrize("groups", GROUPS, ids=str)
@settings(deadline=None)
@given(seed=st.integers(0, 2**32), k=st.integers(1, 4))
def test_a_margin_is_the_least_move_that_gives_the_choice(groups: Groups, seed: int, k: int) -> None:
    """0 for what follows; never more than twice the largest move of a score that did give the choice."""
    generator = torch.Generator().manual_seed(seed)
    scores, noise = torch.randn(2, 64, 16, generator=generator, dtype=torch.float64)
    assert margins(scores, top_k(scores, k, groups), groups).tolist() == [0.0] * 64
    for size in (0.01, 0.1, 1.0):
        moves = size * noise
        margin = margins(scores, top_k(scores + moves, k, groups), groups)
        assert (margin <= 2 * moves.abs().amax(-1) + 1e-12).all()


@settings(deadline=None)
@given(seed=st.integers(0, 2**32), k=st.integers(1, 4))
def test_without_groups_a_move_by_half_the_margin_is_enough(seed: int, k: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores, other = torch.randn(2, 8, 16, generator=generator, dtype=torch.float64)
    chosen = top_k(scores + 0.5 * other, k)
    margin = margins(scores, chosen)
    up = torch.zeros(scores.shape, dtype=torch.bool).scatter(-1, chosen, value=True)

    def moved(by: torch.Tensor) -> torch.Tensor:
        return same_choice(top_k(torch.where(up, scores + by[:, None], scores - by[:, None]), k), chosen)

    assert moved(margin / 2 + 1e-9).all()
    assert not moved(margin / 2 - 1e-9)[margin > 0].any()


def test_a_choice_from_a_group_that_is_not_kept_has_the_margin_of_the_groups() -> None:
    """Group 1 is 3 below group 0, and a group's sum moves twice as far as a score."""
    scores = torch.tensor([[3.0, 3.0, 2.0, 1.0]], dtype=torch.float64)
    assert margins(scores, torch.tensor([[2]]), Groups(2, 1, 2)).tolist() == [1.5]
    assert margins(scores, torch.tensor([[3]]), Groups(2, 1, 2)).tolist() == [1.5]
    assert margins(scores, torch.tensor([[3]]), Groups(2, 1, 1)).tolist() == [1.0]


def test_margins_of_what_cannot_be_chosen() -> None:
    inf = float("inf")
    scores = torch.tensor([[3.0, 2.0, 1.0, -inf, -inf]]).expand(6, 5).to(torch.float64)
    chosen = torch.tensor([[0, 1], [0, 2], [0, 0], [0, 5], [0, 3], [-1, 0]])
    assert margins(scores, chosen).tolist() == [0.0, 1.0, inf, inf, inf, inf]
    few = torch.tensor([[1.0, -inf, -inf, -inf]], dtype=torch.float64)
    assert margins(few, torch.tensor([[0, 2]])).tolist() == [0.0], "of equal ones either may be chosen"
    groups = Groups(2, 1, 2)
    tied = torch.tensor([[3.0, 2.0, 2.5, 2.5]], dtype=torch.float64)
    assert margins(tied, torch.tensor([[2, 3]]), groups).tolist() == [0.0]
    assert margins(tied, torch.tensor([[0, 2]]), groups).tolist() == [inf], "of two groups, where one is kept"


SCORES = torch.tensor([[1.0, 4.0, 2.0, 3.0], [8.0, 5.0, 6.0, 7.0]])
LOWEST = torch.tensor([[0, 2], [1, 2]])
CALLS = {
    "topk": lambda x: x.topk(2),
    "topk-of-the-module": lambda x: torch.topk(x, k=2, dim=-1),
    "smallest": lambda x: torch.topk(-x, 2, 1, False),
    "sort": lambda x: x.sort(descending=True),
    "argsort": lambda x: torch.argsort(x, dim=-1, descending=True),
    "stable": lambda x: torch.argsort(x, dim=-1, descending=True, stable=True),
    "argmax": lambda x: x.argmax(-1),
    "argmax-kept": lambda x: x.argmax(-1, keepdim=True),
    "max": lambda x: torch.max(x, dim=1),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_is_seen_and_its_choice_replaced(name: str) -> None:
    seen: list[Ranked] = []
    with RankingCalls(seen.append):  # type: ignore[arg-type]
        own = CALLS[name](SCORES)
    [call] = seen
    assert same_bits(call.scores, SCORES)
    assert call.indices is not None
    k = call.indices.shape[-1]
    assert same_bits(call.indices, SCORES.topk(k).indices)

    lock = torch.cat((LOWEST, SCORES.topk(2).indices), -1)[:, :k]
    with RankingCalls(lambda call: lock):
        other = CALLS[name](SCORES)
    values, indices = (None, other) if isinstance(other, torch.Tensor) else other
    assert type(other) is type(own)
    assert same_bits(indices.view(2, k), lock)
    sign = -1 if name == "smallest" else 1
    assert values is None or same_bits(values.view(2, k), sign * SCORES.gather(-1, lock))


@pytest.mark.parametrize(
    "other",
    [lambda x: torch.max(x, x), lambda x: x.max(), lambda x: x.argmax(), lambda x: x.topk(2, 0), lambda x: x.amax(0)],
)
def test_what_ranks_no_experts_is_left_alone(other: object) -> None:
    with RankingCalls(lambda _call: pytest.fail("seen")):
        other(SCORES)  # type: ignore[operator]
