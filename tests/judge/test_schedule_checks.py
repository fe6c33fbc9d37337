"""The schedule check: what ranks call fits what the others call, whatever depends on their data or number."""

from __future__ import annotations

from dataclasses import replace

import pytest
from findings import call

from tp_harness.judge.schedule_checks import schedule_check
from tp_harness.results.collective import Collective, Exchange

PLAN = (call(), call(length=64), call("all_gather", dtype="bfloat16"))


@pytest.mark.parametrize("planned", [PLAN, None], ids=["planned", "no-plan"])
@pytest.mark.parametrize(
    ("odd", "text"),
    [
        pytest.param((PLAN[1], PLAN[0], PLAN[2]), "call 0 is all_reduce [80, 64]", id="swapped"),
        pytest.param(PLAN[:2], "2 collectives instead of 3", id="missing"),
        pytest.param((*PLAN, call()), "4 collectives instead of 3", id="extra"),
        pytest.param((call(dtype="bfloat16"), *PLAN[1:]), "all_reduce [80, 96] bfloat16", id="dtype"),
        pytest.param((call(group_size=4), *PLAN[1:]), "over 4 ranks instead of", id="group"),
        pytest.param((call("reduce_scatter"), *PLAN[1:]), "reduce_scatter [80, 96]", id="kind"),
    ],
)
def test_schedule(odd: tuple[Collective, ...], text: str, planned: tuple[Collective, ...] | None) -> None:
    everywhere = schedule_check(PLAN, dict.fromkeys(range(4), odd))
    assert not everywhere.passed
    assert everywhere.detail.startswith("recorded against planned: ")
    assert text in everywhere.detail
    one_rank = schedule_check(planned, {0: PLAN, 1: PLAN, 2: odd, 3: PLAN})
    assert not one_rank.passed
    assert one_rank.detail.startswith("rank 2 against rank 0: ")
    assert text in one_rank.detail
    assert schedule_check(None, dict.fromkeys(range(4), odd)).passed, "without a plan, agreement is all"
    clean = schedule_check(planned, dict.fromkeys(range(4), PLAN))
    assert (clean.name, clean.passed) == ("schedule", True)
    assert clean.detail == "3 collectives, the same on all ranks" + (", as planned" if planned else "")


def of(rank_call: Collective, **known: object) -> Collective:
    return replace(rank_call, exchange=Exchange(**known))  # type: ignore[arg-type]  # fields of Exchange


def routed(*sends: tuple[int, ...]) -> dict[int, list[Collective]]:
    """Each rank's all_to_all, given what it sends to each."""
    received = list(zip(*sends, strict=True))
    return {
        rank: [of(call("all_to_all", 2, length=sum(given)), sends=given, receives=received[rank])]
        for rank, given in enumerate(sends)
    }


def send(to: int, length: int = 96, dtype: str = "float32", tag: int = 0) -> Collective:
    return of(call("send", 2, dtype, length), peer=to, tag=tag)


def recv(source: int | None, length: int = 96, dtype: str = "float32", tag: int = 0) -> Collective:
    return of(call("recv", 2, dtype, length), peer=source, tag=tag)


EVEN, ODD = (of(call(group_size=2), members=pair, operation="sum") for pair in ((0, 2), (1, 3)))
WORLD = call(group_size=4)
ROOTED = [of(call("broadcast"), peer=root) for root in (0, 1)]

RIGHT: dict[str, tuple[dict[int, list[Collective]], str]] = {
    "all_to_all-with-other-splits": (
        routed((5, 1), (0, 7)),
        "2 calls, in each group the same kinds, dtypes, shapes, operations and roots in one order, in 2 calls of "
        "all_to_all each rank sends what the others expect",
    ),
    "odd-ranks-receive-first": (
        {0: [send(1), recv(1)], 1: [recv(0), send(0)]},
        "4 calls, in each group the same kinds, dtypes, shapes, operations and roots in one order, each of 2 sends has "
        "its receive",
    ),
    "pipeline-stages": ({0: [call(), send(1)], 1: [recv(0), call(), send(2)], 2: [recv(1), call()]}, "2 sends"),
    "messages-of-several-sizes-and-tags": (
        {0: [send(1, 8, tag=1), send(1, 4)], 1: [recv(0, 4), recv(0, 8, tag=1)]},
        "2 sends",
    ),
    "from-any-rank": ({0: [recv(None, 4), recv(None, 8)], 1: [send(0, 8)], 2: [send(0, 4)]}, "2 sends"),
    "mesh": (
        {0: [EVEN, WORLD], 1: [ODD, ODD, WORLD], 2: [EVEN, WORLD], 3: [ODD, ODD, WORLD]},
        "10 calls",
    ),
    "a-rank-that-is-in-no-group": ({0: [EVEN], 1: [], 2: [EVEN], 3: []}, "2 calls"),
    "one-root": ({0: [ROOTED[1]], 1: [ROOTED[1]]}, "1 collectives, the same on all ranks"),
}


@pytest.mark.parametrize("name", RIGHT)
def test_calls_that_fit_pass_whatever_their_sizes(name: str) -> None:
    recorded, said = RIGHT[name]
    check = schedule_check(None, {rank: tuple(calls) for rank, calls in recorded.items()})
    assert check.passed, check.detail
    assert said in check.detail


WRONG: dict[str, tuple[dict[int, list[Collective]], str]] = {
    "all_to_all-splits-that-do-not-agree": (
        {**routed((5, 1), (0, 7)), 1: routed((5, 2), (0, 6))[1]},
        "all_to_all 0 over 2 ranks: rank 0 sends 1 elements to rank 1, which expects 2 from it",
    ),
    "all_to_all-skipped": ({0: routed((5, 1), (0, 7))[0], 1: []}, "rank 1 against rank 0: 0 collectives instead of 1"),
    "all_to_all-dtype": (
        {0: routed((1, 1), (1, 1))[0], 1: [replace(routed((1, 1), (1, 1))[1][0], dtype="bfloat16")]},
        "rank 1 against rank 0: call 0 is all_to_all [80, 2] bfloat16",
    ),
    "a-send-without-receive": (
        {0: [send(1), send(1)], 1: [recv(0)]},
        "rank 0 sends 2 messages to rank 1, which receives 1 from it",
    ),
    "a-receive-without-send": ({0: [], 1: [recv(0)]}, "rank 0 sends 0 messages to rank 1, which receives 1 from it"),
    "to-the-wrong-rank": ({0: [send(2)], 1: [recv(0)], 2: []}, "rank 0 sends 1 messages to rank 2, which receives 0"),
    "another-tag": ({0: [send(1, tag=3)], 1: [recv(0)]}, "rank 0 sends 1 messages to rank 1 with tag 3, which rece"),
    "another-size": (
        {0: [send(1, 8)], 1: [recv(0, 4)]},
        "message 0 from rank 0 to rank 1 is sent as [80, 8] float32 and received as [80, 4] float32",
    ),
    "another-order": (
        {0: [send(1, 4), send(1, 8)], 1: [recv(0, 8), recv(0, 4)]},
        "message 0 from rank 0 to rank 1 is sent as [80, 4] float32 and received as [80, 8] float32",
    ),
    "another-dtype": (
        {0: [send(1)], 1: [recv(0, dtype="int32")]},
        "sent as [80, 96] float32 and received as [80, 96] ",
    ),
    "from-any-rank-another-size": (
        {0: [recv(None, 4), recv(None, 8)], 1: [send(0, 8)], 2: [send(0, 8)]},
        "message 0 from any rank to rank 0 is sent as [80, 8] float32 and received as [80, 4] float32",
    ),
    "in-a-subgroup-one-more": (
        {0: [EVEN, WORLD], 1: [ODD, ODD, WORLD], 2: [EVEN, WORLD], 3: [ODD, WORLD]},
        "rank 3 against rank 1: call 1 is all_reduce [80, 96] float32 over 4 ranks instead of all_reduce [80, 96] "
        "float32 over ranks 1, 3",
    ),
    "groups-in-another-order": (
        {0: [EVEN, WORLD], 1: [WORLD], 2: [WORLD, EVEN], 3: [WORLD]},
        "rank 2 against rank 0: call 0 is all_reduce [80, 96] float32 over 4 ranks instead of all_reduce [80, 96] "
        "float32 over ranks 0, 2",
    ),
    "the-wrong-group": (
        {0: [WORLD], 1: [WORLD], 2: [WORLD], 3: [ODD]},
        "rank 3 against rank 0: 0 collectives instead of 1",
    ),
    "another-root": (
        {0: [ROOTED[0]], 1: [ROOTED[1]]},
        "rank 1 against rank 0: call 0 is broadcast [80, 96] float32 over 8 ranks from rank 1 instead of broadcast "
        "[80, 96] float32 over 8 ranks from rank 0",
    ),
    "another-operation": (
        {0: [of(call(), operation="sum")], 1: [of(call(), operation="max")]},
        "rank 1 against rank 0: call 0 is all_reduce (max) [80, 96] float32 over 8 ranks instead of all_reduce [80,",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_calls_that_do_not_fit_are_a_finding_that_names_both_ranks(name: str) -> None:
    recorded, said = WRONG[name]
    check = schedule_check(None, {rank: tuple(calls) for rank, calls in recorded.items()})
    assert not check.passed
    assert said in check.detail


def test_a_plan_holds_for_every_rank() -> None:
    calls = {0: (EVEN,), 1: (ODD, ODD), 2: (EVEN,), 3: (ODD, ODD)}
    assert schedule_check(None, calls).passed
    check = schedule_check((EVEN,), calls)
    assert (check.passed, check.detail) == (False, "rank 1 against planned: 2 collectives instead of 1")


@pytest.mark.parametrize("planned", [(call("reduce"), call()), None], ids=["planned", "no-plan"])
def test_what_is_not_scheduled_is_not_compared_and_said(planned: tuple[Collective, ...] | None) -> None:
    recorded: dict[int, tuple[Collective, ...]] = {0: (call(), send(1), call("reduce")), 1: (call(),)}
    assert not schedule_check(planned, recorded).passed
    check = schedule_check(planned, recorded, ("send", "reduce"))
    assert check.passed
    assert check.detail.endswith("not compared: recv, reduce, send")
    assert not schedule_check(planned, {**recorded, 1: ()}, ("send", "reduce")).passed, "the others are"


def test_a_handle_that_nobody_waited_for_is_a_finding_though_the_calls_fit() -> None:
    alike = {rank: (call(),) for rank in range(2)}
    assert schedule_check(None, alike, (), {0: (), 1: ()}).passed
    found = schedule_check(None, alike, ("all_reduce",), {1: ("send has a handle", "recv too"), 0: ()})
    assert (found.passed, found.detail) == (False, "rank 1: send has a handle")
