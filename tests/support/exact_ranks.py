"""Collectives in exact arithmetic: what each of three gloo processes gets, and what it should get."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from exact_runs import FIELD, inputs
from torch import Tensor

from tp_harness.arithmetic.exact import Exact

SIZE = 3
Call = Callable[[int, Tensor], Tensor]  # this rank, its tensor (6, 4) -> what it gets
Want = Callable[[int, list[Tensor]], Tensor]  # this rank, all ranks' tensors -> the same


def _reduced(operation: dist.ReduceOp.RedOpType) -> Call:
    def call(rank: int, x: Tensor) -> Tensor:
        dist.all_reduce(x, operation)
        return x

    return call


def _in_turn(rank: int, x: Tensor) -> Tensor:
    work = dist.all_reduce(x, async_op=True)
    work.wait()
    return x * 2


def _gathered(rank: int, x: Tensor) -> Tensor:
    parts = [torch.empty(6, 4) for _ in range(SIZE)]
    dist.all_gather(parts, x)
    return torch.cat(parts)


def _into_tensor(rank: int, x: Tensor) -> Tensor:
    out = torch.empty(SIZE * 6, 4)
    dist.all_gather_into_tensor(out, x)
    return out


def _scattered_sum(rank: int, x: Tensor) -> Tensor:
    out = torch.zeros(2, 4)
    dist.reduce_scatter(out, list(x.chunk(SIZE)))
    return out


def _scattered_tensor(rank: int, x: Tensor) -> Tensor:
    out = torch.empty(2, 4)
    dist.reduce_scatter_tensor(out, x)
    return out


def _broadcast(rank: int, x: Tensor) -> Tensor:
    dist.broadcast(x, 1)
    return x


def _exchanged(rank: int, x: Tensor) -> Tensor:
    out = [torch.empty(2, 4) for _ in range(SIZE)]
    dist.all_to_all(out, list(x.chunk(SIZE)))
    return torch.cat(out)


def _exchanged_single(rank: int, x: Tensor) -> Tensor:
    out = torch.empty(SIZE * (rank + 1), 4)
    dist.all_to_all_single(out, x, [rank + 1] * SIZE, [1, 2, 3])
    return out


def _passed_on(rank: int, x: Tensor) -> Tensor:
    out = torch.zeros(6, 4)
    for turn in range(SIZE):
        if turn == rank:
            dist.send(x, (rank + 1) % SIZE)
        elif turn == (rank - 1) % SIZE:
            dist.recv(out, turn)
    return out


def _both_ways(rank: int, x: Tensor) -> Tensor:
    """Two receives into parts of one buffer."""
    before, after, out = (rank - 1) % SIZE, (rank + 1) % SIZE, torch.zeros(2, 6, 4)
    works = [dist.isend(x, after), dist.isend(2 * x, before)]
    works += [dist.irecv(out[0], before), dist.irecv(out[1], after)]
    for work in works:
        work.wait()
    return out + 1


def _in_a_batch(rank: int, x: Tensor) -> Tensor:
    out = torch.empty(6, 4)
    calls = [dist.P2POp(dist.isend, x, (rank + 1) % SIZE), dist.P2POp(dist.irecv, out, (rank - 1) % SIZE)]
    for work in dist.batch_isend_irecv(calls):
        work.wait()
    return out


def _scattered(rank: int, x: Tensor) -> Tensor:
    out = torch.zeros(2, 4)
    dist.scatter(out, list(x.chunk(SIZE)) if rank == 0 else None, 0)
    return out


def _collected(rank: int, x: Tensor) -> Tensor:
    out = [torch.zeros(6, 4) for _ in range(SIZE)] if rank == 2 else None
    dist.gather(x, out, 2)
    return x * 1 if out is None else torch.cat(out)


def _coalesced(rank: int, x: Tensor) -> Tensor:
    parts = [x[:2] * 1, x[2:] * 1]
    dist.all_reduce_coalesced(parts)
    return torch.cat(parts)


def _bits(rank: int, x: Tensor) -> Tensor:
    y = x * 1
    dist.broadcast(y.view(torch.int32), 1)
    return y


def _objects(rank: int, x: Tensor) -> Tensor:
    found: list[object] = [None] * SIZE
    dist.all_gather_object(found, x)
    return x + sum(y.nan_to_num() for y in found if isinstance(y, Tensor))


def _shard(x: Tensor, rank: int) -> Tensor:
    return x.chunk(SIZE)[rank]


def _total(xs: list[Tensor]) -> Tensor:
    return xs[2] + (xs[0] + xs[1])


GROUP = list(range(SIZE))
CALLS: dict[str, tuple[Call, Want]] = {
    "sum": (_reduced(dist.ReduceOp.SUM), lambda r, xs: _total(xs)),
    "max": (_reduced(dist.ReduceOp.MAX), lambda r, xs: torch.stack(xs).amax(0)),
    "min": (_reduced(dist.ReduceOp.MIN), lambda r, xs: torch.stack(xs).amin(0)),
    "product": (_reduced(dist.ReduceOp.PRODUCT), lambda r, xs: xs[0] * xs[1] * xs[2]),
    "handle": (_in_turn, lambda r, xs: 2 * _total(xs)),
    "coalesced": (_coalesced, lambda r, xs: _total(xs)),
    "all-gather": (_gathered, lambda r, xs: torch.cat(xs)),
    "into-tensor": (_into_tensor, lambda r, xs: torch.cat(xs)),
    "reduce-scatter": (_scattered_sum, lambda r, xs: _shard(_total(xs), r)),
    "scatter-tensor": (_scattered_tensor, lambda r, xs: _shard(_total(xs), r)),
    "broadcast": (_broadcast, lambda r, xs: xs[1] * 1),
    "all-to-all": (_exchanged, lambda r, xs: torch.cat([_shard(x, r) for x in xs])),
    "splits": (_exchanged_single, lambda r, xs: torch.cat([x[[0, 1, 3][r] : [1, 3, 6][r]] for x in xs])),
    "send": (_passed_on, lambda r, xs: xs[r - 1] * 1),
    "both-ways": (_both_ways, lambda r, xs: torch.stack([xs[r - 1], 2 * xs[(r + 1) % SIZE]]) + 1),
    "batch": (_in_a_batch, lambda r, xs: xs[r - 1] * 1),
    "scatter": (_scattered, lambda r, xs: _shard(xs[0], r) * 1),
    "gather": (_collected, lambda r, xs: torch.cat(xs) if r == 2 else xs[r] * 1),
    "functional-sum": (lambda r, x: functional.all_reduce(x, "sum", GROUP) + 1, lambda r, xs: _total(xs) + 1),
    "functional-avg": (lambda r, x: functional.all_reduce(x, "avg", GROUP) + 1, lambda r, xs: _total(xs) / 3 + 1),
    "functional-max": (
        lambda r, x: functional.all_reduce(x, "max", GROUP) + 1,
        lambda r, xs: torch.stack(xs).amax(0) + 1,
    ),
    "functional-gather": (
        lambda r, x: functional.all_gather_tensor(x, 1, GROUP) + 0,
        lambda r, xs: torch.cat(xs, 1) * 1,
    ),
    "functional-scatter": (
        lambda r, x: functional.reduce_scatter_tensor(x, "sum", 0, GROUP) + 0,
        lambda r, xs: _shard(_total(xs), r),
    ),
    "functional-exchange": (
        lambda r, x: functional.all_to_all_single(x, None, None, GROUP) + 0,
        lambda r, xs: torch.cat([_shard(x, r) for x in xs]),
    ),
}
WAYS_OUT: dict[str, Call] = {"bits": _bits, "objects": _objects}


def _given(exact: Exact, constant: int | None) -> list[Tensor]:
    """Each rank's tensor, a variable; that of rank `constant` holds constants."""
    values = inputs(*[(6, 4)] * SIZE)
    return [torch.full((6, 4), 0.5) if r == constant else exact.draw(f"x{r}", x) for r, x in enumerate(values)]


def expected(name: str, rank: int, constant: int | None) -> Tensor:
    """The numbers that a rank should get."""
    exact = Exact(FIELD)
    given = _given(exact, constant)
    with torch.no_grad(), exact.computing():
        out = CALLS[name][1](rank, [x * 1 for x in given])
    return exact.memory.read(out).clone()


def be_rank(rank: int, folder: str) -> None:
    """Make every call, and leave what came of it in the folder."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=SIZE, timeout=timedelta(seconds=100)
    )
    for constant in (None, 1):
        for name, call in {**{name: call for name, (call, _) in CALLS.items()}, **WAYS_OUT}.items():
            exact = Exact(FIELD)
            x = _given(exact, constant)[rank]
            try:
                with torch.no_grad(), exact.computing():
                    out = call(rank, x * 1)
                found = {"numbers": exact.memory.read(out).clone(), "escapes": exact.seen.escapes}
            except RuntimeError as error:
                if "does not support" not in str(error):  # by gloo of an older torch, on every rank
                    raise
                found = {"unsupported": str(error)}
            torch.save(found, Path(folder) / f"{name}-{constant}-{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
