"""Own modules whose calls depend on data or on the rank, on real ranks: right ones pass, and hidden slips are found."""

from __future__ import annotations

from pathlib import Path

import pytest
from command import Harness

CASES = """
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import ReduceOp
from tp_harness import Case, Shard
SUM, MAX = ReduceOp.SUM, ReduceOp.MAX

class Experts(nn.Module):
    def __init__(self, ranks=1):
        super().__init__()
        self.local = 8 // ranks
        self.gate, self.up = nn.Linear(12, 8, bias=False), nn.Parameter(torch.zeros(self.local, 12, 12))

    def forward(self, x):
        rows = x.flatten(0, 1)
        return self.run(rows, self.gate(rows).argmax(-1)).view(x.shape)

    def run(self, rows, expert):
        return (rows[:, None] @ self.up[expert])[:, 0]

class Dispatched(Experts):
    '''Every row goes to the rank of its expert and comes back: how many depends on the routing.'''

    def __init__(self):
        super().__init__(dist.get_world_size())

    def run(self, rows, expert):
        order = expert.argsort(stable=True)
        sent = torch.bincount(expert // self.local, minlength=dist.get_world_size())
        got = torch.empty_like(sent)
        dist.all_to_all_single(got, sent)
        there, numbers = rows.new_empty(int(got.sum()), 12), expert.new_empty(int(got.sum()))
        dist.all_to_all_single(there, rows[order].contiguous(), got.tolist(), sent.tolist())
        dist.all_to_all_single(numbers, expert[order].contiguous(), got.tolist(), sent.tolist())
        back = torch.empty_like(rows)
        there = super().run(there, numbers - dist.get_rank() * self.local).contiguous()
        dist.all_to_all_single(back, there, sent.tolist(), got.tolist())
        return torch.zeros_like(back).index_copy_(0, order, back)

class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(12, 20)

    def forward(self, x):
        return self.linear(x) + self.other(x.sum(1, keepdim=True))

    def other(self, total):
        return total[..., :1]

class Ring(Linear):
    '''Totals go round; even ranks send first, odd ones receive first.'''

    def other(self, total):
        n, r = dist.get_world_size(), dist.get_rank()
        parts = {r: total}
        for step in range(1, n):
            came = torch.empty_like(total)
            both = [lambda: dist.send(total.contiguous(), (r + 1) % n), lambda: dist.recv(came, (r - 1) % n)]
            for act in both if r % 2 == 0 else both[::-1]:
                act()
            parts[(r - step) % n] = total = came
        return sum(parts[i] for i in range(n))[..., :1]

class Halves(Linear):
    '''Sums over pairs of ranks, and then over one of each pair; the last two ranks sum twice as often.'''

    def __init__(self):
        super().__init__()
        n = dist.get_world_size()
        self.pairs = [dist.new_group([i, i + 1]) for i in range(0, n, 2)]
        self.firsts, self.seconds = dist.new_group([*range(0, n, 2)]), dist.new_group([*range(1, n, 2)])

    def other(self, total):
        rank, total = dist.get_rank(), total.contiguous()
        pair = self.pairs[rank // 2]
        dist.all_reduce(total, group=pair)
        if pair is self.pairs[-1]:
            dist.all_reduce(total.clone(), group=pair)
        dist.all_reduce(total, group=self.seconds if rank % 2 else self.firsts)
        return total[..., :1]

class Longer(Ring):
    '''Reads more numbers than were sent, and uses no more than those.'''

    def other(self, total):
        right = super().other(total)
        if dist.get_rank() == 0:
            dist.send(right.contiguous(), 1)
        elif dist.get_rank() == 1:
            dist.recv(right.new_empty(right.numel() + 4), 0)
        return right

class Maximum(Ring):
    '''Rank 1 takes the maximum, where the sum is the same number.'''

    def other(self, total):
        right = super().other(total)
        dist.all_reduce(torch.ones(4) * (dist.get_rank() == 0), op=MAX if dist.get_rank() == 1 else SUM)
        return right

def case(reference, sharded, plan={}, output=Shard(1), **fields):
    return Case(name="own", reference=reference, sharded=sharded, plan=plan, output=output, **fields,
                input_placements=(Shard(1),), inputs=lambda g: (torch.randn(2, 16, 12, generator=g),))

DISPATCHED = case(Experts, Dispatched, {"up": Shard(0)})
RING, HALVES, LONGER, MAXIMUM = (case(Linear, sharded) for sharded in (Ring, Halves, Longer, Maximum))
UNSCHEDULED = case(Linear, Longer, unscheduled=("send",))
"""


def schedule(folder: Path, name: str) -> tuple[int, set[tuple[bool, str]]]:
    """The exit code of a run at tp 4, and what its schedule checks say."""
    folder.mkdir()
    harness = Harness(folder)
    harness.cases.write_text(CASES)
    code = harness.code("--case", f"{harness.cases}:{name}", "--tp", "4", "--draws", "1", "--dtype", "float32")
    checks = [check for result in harness.record()["results"] for check in result["checks"]]
    return code, {(check["passed"], check["detail"]) for check in checks if check["name"] == "schedule"}


@pytest.mark.parametrize("name", ["DISPATCHED", "RING", "HALVES", "UNSCHEDULED"])
def test_calls_that_depend_on_data_or_rank_are_right(tmp_path: Path, name: str) -> None:
    code, [(passed, said)] = schedule(tmp_path / name, name)
    assert (code, passed) == (0, True), said
    compared = {
        "DISPATCHED": "in 16 calls of all_to_all each rank sends what the others expect",
        "RING": "24 calls, in each group the same kinds, dtypes, shapes, operations and roots in one order, each of 12 "
        "sends has its receive",
        "HALVES": "10 calls, in each group the same kinds, dtypes, shapes, operations and roots in one order",
        "UNSCHEDULED": "not compared: recv, send",
    }
    assert compared[name] in said


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("LONGER", "message 3 from rank 0 to rank 1 is sent as [2, 1, 1] float32 and received as [6] float32"),
        (
            "MAXIMUM",
            "rank 1 against rank 0: call 6 is all_reduce (max) [4] float32 over 4 ranks instead of all_reduce ",
        ),
    ],
)
def test_a_slip_that_no_output_shows_is_found(tmp_path: Path, name: str, words: str) -> None:
    code, found = schedule(tmp_path / name, name)
    assert code == 1
    assert [words in said for passed, said in found if not passed] == [True], found
