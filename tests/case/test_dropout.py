"""In training mode both sides drop the same elements; what is dropped in another place is a mistake."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from own_runs import run_case

from tp_harness.case.dropout import LockedDropout
from tp_harness.parallel.group import Group, use_group
from tp_harness.results.result import Status

CASES = """
import torch
from torch import nn
from torch.nn import functional as F
from tp_harness import Case, Shard, current_group

class MLP(nn.Module):
    def __init__(self, ranks=1):
        super().__init__()
        self.up, self.down = nn.Linear(12, 64 // ranks), nn.Linear(64 // ranks, 20, bias=False)
        self.drop = nn.Dropout(0.3)

    def forward(self, x):
        h = self.drop(torch.relu(self.up(x)))
        return F.dropout(self.sum(self.down(h)), 0.2, self.training)

    def sum(self, x):
        return x

class Sharded(MLP):
    def __init__(self):
        super().__init__(current_group().size)

    def sum(self, x):
        return current_group().all_reduce(x)

class Before(Sharded):
    def forward(self, x):
        h = self.drop(torch.relu(self.up(x)))
        return self.sum(F.dropout(self.down(h), 0.2, self.training)) * 1.25

class Off(Sharded):
    def forward(self, x):
        return F.dropout(self.sum(self.down(torch.relu(self.up(x)))), 0.2, self.training)

class Scores(MLP):
    def forward(self, x):
        weighed = F.scaled_dot_product_attention(x, x, x, dropout_p=0.3 if self.training else 0.0)
        return weighed + super().forward(x).sum()

def case(sharded, reference=MLP):
    return Case(
        name="drop", reference=reference, sharded=sharded, training=True,
        plan={"up.weight": Shard(0), "up.bias": Shard(0), "down.weight": Shard(1)},
        inputs=lambda g: (torch.randn(2, 16, 12, generator=g),),
    )

RIGHT, BEFORE, OFF = case(Sharded), case(Before), case(Off)
UNLOCKED = case(Scores, Scores)
"""
DTYPES = ("exact", "float32", "bfloat16")


@pytest.mark.parametrize(
    ("name", "statuses"),
    [
        ("RIGHT", {Status.PROVED, Status.PASS}),
        ("BEFORE", {Status.DIFFERENT, Status.MISMATCH}),
        ("OFF", {Status.DIFFERENT, Status.MISMATCH, Status.CRASH}),
    ],
)
def test_dropouts_are_locked(tmp_path: Path, name: str, statuses: set[Status]) -> None:
    found = run_case(tmp_path, CASES, name, (1, 4) if name == "RIGHT" else (4,), dtypes=DTYPES, draws=1).results
    assert {result.status for result in found} <= statuses, [result.reason for result in found]
    assert all(len({*result.checks}) for result in found if result.status is Status.PASS)


def test_what_is_not_locked_proves_nothing(tmp_path: Path) -> None:
    found = run_case(tmp_path, CASES, "UNLOCKED", (1,), dtypes=("float32",), draws=1).results
    assert [result.status for result in found] == [Status.VOID]
    assert "draws random numbers" in found[0].reason


def test_a_rank_drops_its_part_of_what_the_reference_drops() -> None:
    x = torch.ones(3, 8)
    with LockedDropout(7) as whole:
        full = torch.nn.functional.dropout(x, 0.5)
        assert torch.equal(torch.nn.functional.dropout(x, 0.5, training=False), x)
    assert whole.seen == [(3, 8)]
    assert set(full.unique().tolist()) == {0.0, 2.0}
    parts = []
    for rank in range(4):
        with use_group(Group(rank, 4)), LockedDropout(7, whole.seen):
            parts.append(torch.nn.functional.dropout(x[:, 2 * rank : 2 * rank + 2].clone(), 0.5, inplace=True))
    assert torch.equal(torch.cat(parts, 1), full)
    with (
        use_group(Group(0, 4)),
        LockedDropout(7, whole.seen),
        pytest.raises(RuntimeError, match=r"dropout 0 is given \[1, 4\] on"),
    ):
        torch.nn.functional.dropout(x[:1, :4], 0.5)
