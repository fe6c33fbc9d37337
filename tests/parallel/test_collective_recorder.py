"""What is recorded of the calls that a module makes by torch.distributed itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from torch.distributed import _functional_collectives as functional

from tp_harness.parallel.collective_recorder import CollectiveRecorder
from tp_harness.results.collective import Exchange
from tp_harness.results.result import Collective


def rows(count: int) -> torch.Tensor:
    return torch.zeros(count, 3)


# What a user's module may call, and what must be recorded of it: kind, shape, group size.
DIRECT: dict[str, tuple[Callable[[dist.ProcessGroup], object], list[tuple[str, tuple[int, ...], int]]]] = {
    "all_reduce": (lambda _: dist.all_reduce(rows(4)), [("all_reduce", (4, 3), 4)]),
    "all_reduce-async": (lambda _: dist.all_reduce(rows(4), async_op=True).wait(), [("all_reduce", (4, 3), 4)]),
    "all_reduce-pair": (lambda pair: dist.all_reduce(rows(4), group=pair), [("all_reduce", (4, 3), 2)]),
    "all_gather": (lambda _: dist.all_gather([rows(4)] * 4, rows(4)), [("all_gather", (4, 3), 4)]),
    "all_gather-base": (lambda _: dist.all_gather_into_tensor(rows(8), rows(2)), [("all_gather", (2, 3), 4)]),
    "reduce_scatter-base": (lambda _: dist.reduce_scatter_tensor(rows(1), rows(4)), [("reduce_scatter", (4, 3), 4)]),
    "broadcast": (lambda _: dist.broadcast(rows(2), src=0), [("broadcast", (2, 3), 4)]),
    "reduce": (lambda _: dist.reduce(rows(2), dst=0), [("reduce", (2, 3), 4)]),
    "send": (lambda _: dist.send(rows(2), 0), [("send", (2, 3), 4)]),
    "barrier": (lambda _: dist.barrier(), []),
    "two": (
        lambda _: (dist.all_reduce(rows(1)), dist.broadcast(rows(2), 0)),
        [("all_reduce", (1, 3), 4), ("broadcast", (2, 3), 4)],
    ),
    "functional-all_reduce": (
        lambda pair: functional.wait_tensor(functional.all_reduce(rows(4), "sum", pair)),
        [("all_reduce", (4, 3), 2)],
    ),
    "functional-all_gather": (
        lambda pair: functional.wait_tensor(functional.all_gather_tensor(rows(4), 0, pair)),
        [("all_gather", (4, 3), 2)],
    ),
    "functional-reduce_scatter": (
        lambda pair: functional.wait_tensor(functional.reduce_scatter_tensor(rows(4), "sum", 0, pair)),
        [("reduce_scatter", (4, 3), 2)],
    ),
}


@pytest.mark.parametrize("name", DIRECT)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference"])
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_calls_made_directly_are_recorded(name: str, mode: Callable[[], torch.no_grad], rank_1_of_4: None) -> None:
    call, expected = DIRECT[name]
    pair = dist.new_group([0, 1])
    with mode(), CollectiveRecorder() as recorder:
        _ = rows(4) @ rows(4).t()  # ordinary operations leave no trace
        call(pair)
    size = {shape: 4 * torch.Size(shape).numel() for _, shape, _ in expected}
    assert recorder.calls == [
        Collective(kind=kind, group_size=group, shape=shape, dtype="float32", bytes=size[shape])
        for kind, shape, group in expected
    ]


def exchange(call: Callable[[dist.ProcessGroup], object]) -> Exchange | None:
    """What is recorded of the parties of one call of rank 1 of 4; it is given the group of ranks 1 and 3."""
    odd = dist.new_group([1, 3])
    with torch.no_grad(), CollectiveRecorder() as recorder:
        call(odd)
    assert len(recorder.calls) == 1
    return recorder.calls[0].exchange


MAX = dist.ReduceOp.MAX
EXCHANGES: dict[str, tuple[Callable[[dist.ProcessGroup], object], Exchange]] = {
    "sum": (lambda _: dist.all_reduce(rows(1)), Exchange(operation="sum")),
    "max": (lambda _: dist.all_reduce(rows(1), op=MAX), Exchange(operation="max")),
    "max-functional": (
        lambda odd: functional.wait_tensor(functional.all_reduce(rows(4), "max", odd)),
        Exchange(members=(1, 3), operation="max"),
    ),
    "max-scatter": (lambda _: dist.reduce_scatter_tensor(rows(1), rows(4), op=MAX), Exchange(operation="max")),
    "subgroup": (
        lambda odd: dist.all_gather([rows(1)] * 2, rows(1), group=odd),
        Exchange(members=(1, 3)),
    ),
    "root": (lambda odd: dist.broadcast(rows(1), src=3, group=odd), Exchange(members=(1, 3), peer=3)),
    "send": (lambda odd: dist.send(rows(1), 3, group=odd, tag=5), Exchange(members=(1, 3), peer=3, tag=5)),
    "isend": (lambda _: dist.isend(rows(1), 2), Exchange(peer=2)),
    "recv": (lambda _: dist.recv(rows(1), 0), Exchange(peer=0)),
    "irecv": (lambda _: dist.irecv(rows(1), 0), Exchange(peer=0)),
    "batch": (lambda _: dist.batch_isend_irecv([dist.P2POp(dist.isend, rows(1), 2)]), Exchange(peer=2)),
    "all_to_all": (
        lambda _: dist.all_to_all_single(rows(8), rows(8)),
        Exchange(sends=(6, 6, 6, 6), receives=(6, 6, 6, 6)),
    ),
    "all_to_all-splits": (
        lambda odd: dist.all_to_all_single(rows(5), rows(5), [0, 5], [4, 1], group=odd),
        Exchange(members=(1, 3), sends=(12, 3), receives=(0, 15)),
    ),
    "all_to_all-list": (
        lambda odd: dist.all_to_all([rows(3), rows(1)], [rows(3), rows(1)], group=odd),
        Exchange(members=(1, 3), sends=(9, 3), receives=(9, 3)),
    ),
    "all_to_all-functional": (
        lambda odd: functional.wait_tensor(functional.all_to_all_single(rows(5), [0, 5], [4, 1], odd)),
        Exchange(members=(1, 3), sends=(12, 3), receives=(0, 15)),
    ),
}


@pytest.mark.parametrize("name", EXCHANGES)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_between_whom_a_call_was_is_recorded(name: str, rank_1_of_4: None) -> None:
    call, expected = EXCHANGES[name]
    assert exchange(call) == expected


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_a_rank_without_lists_has_the_size_of_what_it_gets(rank_1_of_4: None) -> None:
    with torch.no_grad(), CollectiveRecorder() as recorder:
        dist.scatter(rows(2), None, src=0)
        dist.gather(rows(3), None, dst=0)
        dist.all_to_all(list(rows(8).split(2)), list(rows(8).split(2)))
    assert [(call.kind, call.shape) for call in recorder.calls] == [
        ("scatter", (2, 3)),
        ("gather", (3, 3)),
        ("all_to_all", (24,)),
    ]
