"""What exact arithmetic follows, right programs proved and wrong ones not: views, buffers, compiled code, gradients.

Nothing that is ordinary counts as a way out.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch
from exact_runs import FIELD, inputs, proved, run
from torch import nn

from tp_harness.arithmetic.exact import Exact

Way = Callable[[torch.Tensor], torch.Tensor]


def buffer(x: torch.Tensor) -> torch.Tensor:
    out = torch.zeros(6, 4)
    out[:3] = x
    out[3:].copy_(x * 2)
    return out


def empty_buffer(x: torch.Tensor) -> torch.Tensor:
    out = torch.empty(3, 8)
    out.narrow(1, 4, 4).copy_(x)
    out[:, :4] = x.exp()
    return out


def through_views(x: torch.Tensor) -> torch.Tensor:
    y = x.clone()
    y.t()[1].mul_(3).add_(1)
    y.view(-1)[2::3] -= 2
    y.unsqueeze(0).permute(2, 1, 0)[0].fill_(0.5)
    for row in y:
        row[1] += row[2]
    return y


def outs(x: torch.Tensor) -> torch.Tensor:
    out = torch.empty(3, 4)
    torch.add(x, 1, out=out)
    torch.mm(out, x.t().contiguous() @ x, out=out)
    mask = torch.zeros(3, 4, dtype=torch.bool)
    torch.gt(out, 0, out=mask)
    return torch.where(mask, out, x)


def without_gradient_tracking(x: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        y = x.t().contiguous().reshape(2, 6).to(torch.float64).to(torch.float32)
        z = y.view(3, 4).clone()
        z[0] = y.view(3, 4)[1]
        return z.expand(2, 3, 4).contiguous() + 1


def gradient(x: torch.Tensor) -> torch.Tensor:
    y = x.detach().requires_grad_()
    with torch.enable_grad():
        (nn.functional.silu(y @ y.t()).softmax(-1) * y.sum(1)).sum().backward()
    assert y.grad is not None
    return y.grad


def of_each(x: torch.Tensor) -> torch.Tensor:
    parts = [x[0] * 1, x[1] * 1]
    torch._foreach_mul_(parts, 2.0)
    torch._foreach_add_(parts, [x[2], x[1]], alpha=3)
    return torch.stack(torch._foreach_exp(parts))


def automatic(x: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return x @ x.t()


def conditional(x: torch.Tensor) -> torch.Tensor:
    mask = x > 0
    if mask.any() and bool(mask[0, 0]) is not None:
        x = x.masked_fill(mask, 0.25)
    rows = mask.sum(1).tolist()
    return x * torch.tensor(rows).view(3, 1) + len(rows)


def scripted(x: torch.Tensor) -> torch.Tensor:
    return torch.relu(x) * 2 + x.sum()


SCRIPT, COMPILED = torch.jit.script(scripted), torch.compile(scripted)

WAYS: dict[str, Way] = {
    "buffer": buffer,
    "empty-buffer": empty_buffer,
    "views": through_views,
    "out": outs,
    "inference-mode": without_gradient_tracking,
    "backward": gradient,
    "foreach": of_each,
    "autocast": automatic,
    "branch": conditional,
    "script": lambda x: SCRIPT(SCRIPT(SCRIPT(x))),
    "compile": COMPILED,
    "vmap": torch.vmap(scripted),
    "dropout-off": lambda x: nn.functional.dropout(nn.functional.dropout(x, 0.5, training=False), 0.0),
    "parameter": lambda x: nn.Parameter(x * 1) + 1,
    "data": lambda x: nn.Parameter(torch.zeros(3, 4)).data.copy_(x) + 1,
    "device": lambda x: x.to("cpu").cpu().float() + torch.arange(4),
    "checkpoint": lambda x: torch.utils.checkpoint.checkpoint(scripted, x, use_reentrant=False),
    "einsum": lambda x: torch.einsum("ij,kj->ik", x, x),
}


def ends(way: Way, size: int = 4) -> tuple[bool, bool, list[str]]:
    """Whether the right and the wrong program are proved, and the ways out."""
    given = inputs((3, size), (1,))
    right = run(lambda x, z: z * way(x * 1), *given)
    again = run(lambda x, z: z * way(x + x - x), *given)
    wrong = run(lambda x, z: z * way(x + z / 64), *given)
    return proved(right, again), proved(right, wrong), right.seen.escapes


@pytest.mark.parametrize("name", WAYS)
def test_the_right_program_is_proved_and_the_wrong_one_is_not(name: str) -> None:
    assert ends(WAYS[name]) == (True, False, [])


def test_a_constants_elements_may_leave() -> None:
    """Only what depends on variables has to stay in sight."""
    table = torch.arange(4.0)

    def way(x: torch.Tensor) -> torch.Tensor:
        scale = float(table.sum()) + table.numpy()[1] + len(f"{table}") + table.tolist()[0]
        return x * scale + torch.tensor([1.0, 2.0, 3.0, 4.0])

    assert ends(way) == (True, False, [])


def worked_elsewhere(x: torch.Tensor, submit: Callable[[Callable[[], None]], None]) -> torch.Tensor:
    out: list[torch.Tensor] = []
    submit(lambda: out.append(torch.where(x > 0, x, 0.0)))
    return out[0] + 1


@contextmanager
def own_worker() -> Iterator[Callable[[Callable[[], None]], None]]:
    """A thread that waits for work in a queue."""
    todo: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
    done: queue.SimpleQueue[None] = queue.SimpleQueue()

    def work() -> None:
        while function := todo.get():
            function()
            done.put(None)

    def submit(function: Callable[[], None]) -> None:
        todo.put(function)
        done.get()

    thread = threading.Thread(target=work)
    thread.start()
    submit(lambda: None)
    yield submit
    todo.put(None)
    thread.join()


@contextmanager
def pool() -> Iterator[Callable[[Callable[[], None]], None]]:
    """A pool whose thread runs already."""
    with ThreadPoolExecutor(1) as executor:
        executor.submit(int).result()
        yield lambda function: executor.submit(function).result()


@pytest.mark.parametrize("worker", [own_worker, pool])
def test_a_thread_from_before_that_works_is_seen_and_one_that_sleeps_is_not(worker: Callable[[], object]) -> None:
    with worker() as submit:  # type: ignore[attr-defined]
        right, wrong, escapes = ends(lambda x: worked_elsewhere(x, submit))
        assert not right and not wrong and "ran beside the module" in " ".join(escapes)
        for _ in range(100):
            found = ends(lambda x: x + 1)
            if found == (True, False, []):
                break
            time.sleep(0.02)  # the thread may still be on its way to sleep
        assert found == (True, False, [])


def test_ranks_that_are_threads_do_not_accuse_each_other() -> None:
    turn, seen = threading.Barrier(2), []

    def rank() -> None:
        exact = Exact(FIELD)
        (x,) = inputs((3, 4))
        exact.draw("x", x)
        with torch.no_grad(), exact.computing():
            for _ in range(20):
                turn.wait()
                x = x + 1
        seen.append(exact.seen.escapes)

    threads = [threading.Thread(target=rank) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [[], []]


def test_a_local_part_of_a_dtensor_is_followed(rank_1_of_4: None) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Replicate

    mesh = init_device_mesh("cpu", (4,))

    def way(x: torch.Tensor) -> torch.Tensor:
        whole = DTensor.from_local(x, mesh, [Replicate()], run_check=False)
        return (whole @ whole.t() + whole.sum()).to_local()

    assert ends(way) == (True, False, [])
