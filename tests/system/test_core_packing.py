"""Which block each request gets: aligned, never shared, and nobody waits for ever."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tp_harness.system import core_packing
from tp_harness.system.core_packing import CoreRequest, Grant, place

POOL = tuple(range(32))
Place = Callable[[Sequence[CoreRequest], set[int]], list[Grant]]


def request(count: int, cores: tuple[int, ...] = POOL) -> CoreRequest:
    return CoreRequest(count=count, cores=cores)


def cores_of(request: CoreRequest, grant: Grant) -> set[int]:
    return set(range(grant.first, grant.first + request.count))


@settings(deadline=None)
@given(
    sizes=st.lists(st.sampled_from([1, 2, 8, 32]), min_size=1, max_size=12),
    free=st.sets(st.sampled_from(POOL)),
)
def test_blocks_are_aligned_whole_and_disjoint(sizes: list[int], free: set[int]) -> None:
    queue = [request(size) for size in sizes]
    taken: set[int] = set()
    for wanted, grant in zip(queue, place(queue, free), strict=True):
        block = cores_of(wanted, grant)
        assert grant.first % wanted.count == 0 and block <= set(POOL)
        if grant.ready:
            assert block <= free and not block & taken
        taken |= block  # reserved ones as well: nothing behind may enter them


def test_a_request_takes_only_cores_it_names() -> None:
    [grant] = place([request(1, (5,))], POOL)
    assert (grant.first, grant.ready) == (5, True)
    [grant] = place([request(2, (3, 4, 5, 6, 7))], POOL)
    assert grant.first in (4, 6), "3-4 and 5-6 do not begin at a multiple of 2"
    with pytest.raises(ValueError, match=r"no block of 8 neighbouring cores in \[0, 1, 2\]"):
        place([request(8, (0, 1, 2))], POOL)


def test_small_requests_leave_large_blocks_whole() -> None:
    free = set(POOL) - {8, 9, 16}
    [grant] = place([request(1)], free)
    assert grant.first == 10, "in the eight that is used most"
    [grant] = place([request(2)], free - {10})
    assert grant.first == 12
    assert [grant.first for grant in place([request(8), request(8)], free)] == [0, 24]


def test_a_request_that_does_not_fit_reserves_the_nearest_block() -> None:
    free = set(POOL) - {0, 1, 8, 16, 17, 24, 25}
    first, second, third = place([request(8), request(8), request(2)], free)
    assert (first, second) == (Grant(first=8, ready=False), Grant(first=0, ready=False))
    assert third.ready and third.first >= 16


def wait_of_the_large(place: Place, *, seconds: int = 2000) -> int | None:
    """Seconds until a request for all cores runs beside an endless supply of smaller ones that last 7 to 16 s."""
    running: list[tuple[int, set[int]]] = []
    queue: list[CoreRequest] = []
    for now in range(seconds):
        running = [(end, cores) for end, cores in running if end > now]
        while len(queue) < 4:
            queue.append(request((1, 2, 8)[now % 3]))
        if now == 20:
            queue.append(request(32))
        free = set(POOL) - {core for _, cores in running for core in cores}
        grants = place(queue, free)
        for wanted, grant in zip(queue, grants, strict=True):
            if grant.ready:
                running.append((now + 7 + now % 10, cores_of(wanted, grant)))
                if wanted.count == 32:
                    return now - 20
        queue = [wanted for wanted, grant in zip(queue, grants, strict=True) if not grant.ready]
    return None


def first_come_if_it_fits(queue: Sequence[CoreRequest], free: set[int]) -> list[Grant]:
    """Without reservations: whoever fits goes ahead."""
    grants = []
    for wanted in queue:
        [grant] = core_packing.place([wanted], free)
        grants.append(grant)
        free = free - cores_of(wanted, grant) if grant.ready else free
    return grants


def test_a_waiting_request_is_served() -> None:
    wait = wait_of_the_large(place)
    assert wait is not None and wait <= 2 * 16, "the small ones before it, then those that run"
    assert wait_of_the_large(first_come_if_it_fits) is None, "without reservations it starves"
