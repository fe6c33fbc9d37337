"""A whole run of a module with several mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest
from own_runs import run_case

from tp_harness.report.failure_text import details, sentence
from tp_harness.report.failures import failures
from tp_harness.results.result import Status
from tp_harness.results.run_record import RunRecord, read_run

CASES = '''
import torch
from torch import nn
from tp_harness import Case, Replicate, Shard
from tp_harness.parallel.group import current_group
from tp_harness.parallel.placements import Partial

class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.group = current_group()
        self.up = nn.Linear(12, 64 // self.group.size, bias=False)
        self.down = nn.Linear(64 // self.group.size, 96, bias=False)
        self.bias = nn.Parameter(torch.zeros(96))
        self.hidden, self.partial, self.total = nn.Identity(), nn.Identity(), nn.Identity()

    def forward(self, x):
        hidden = self.hidden(self.act(self.up(x)))
        return self.total(self.sum(self.partial(self.down(hidden)))) + self.bias

    def act(self, x):
        return torch.relu(x)

    def sum(self, x):
        return self.group.all_reduce(x)

class Thrice(Mlp):
    def forward(self, x):
        return super().forward(x) + self.bias * (self.group.size - 1)

    def act(self, x):
        return 1.5 * torch.relu(x)

    def sum(self, x):
        return x.clone()

class Proud(Thrice):
    """It raises where it is given another tensor than its own."""

    def forward(self, x):
        own = self.act(self.up(x))
        hidden = self.hidden(own)
        if not torch.equal(own, hidden):
            raise ArithmeticError("that is not mine")
        return self.sum(self.down(hidden)) + self.bias

def case(sharded, **fields):
    return Case(
        name="own", reference=Mlp, sharded=sharded, plan={"up.weight": Shard(0), "down.weight": Shard(1)},
        inputs=lambda g: (torch.randn(4, 24, 12, generator=g),), **fields
    )

TAPS = {"hidden": Shard(-1), "partial": Partial(), "total": Replicate()}
RIGHT, THRICE, PROUD = case(Mlp, taps=TAPS), case(Thrice, taps=TAPS), case(Proud, taps={"hidden": Shard(-1)})
'''


def record_of(folder: Path, name: str, degrees: tuple[int, ...] = (2,), **fields: object) -> RunRecord:
    return run_case(folder, CASES, name, degrees, **fields)


def test_every_mistake_is_told_at_every_degree_in_every_dtype(tmp_path: Path) -> None:
    record = record_of(tmp_path, "THRICE", (2, 8), dtypes=("exact", "float32", "bfloat16"))
    assert [result.status for result in record.results] == [Status.DIFFERENT, *[Status.MISMATCH] * 2] * 2
    causes = [[*r.diagnosis, *(cause for m in r.further for cause in m.causes)] for r in record.results]
    assert [{cause.exact for cause in told} for told in causes] == [{True}, {False}, {False}] * 2
    [failure] = failures(read_run(record.path).results)
    assert sentence(failure) == (
        "own: output.0 is not the reference's at tp 2, 8 in all dtypes: 3 mistakes: 1. scaled; 2. all-reduce missing; "
        "3. bias x tp"
    )
    assert details(failure)[-1] == "with these put right, everything else is right"
    assert sorted(path.name for path in (record.folder / "logs").iterdir()) == [
        f"tp{tp}{of}" for tp in (2, 8) for of in ("", "-all-grafts", "-grafts", "-taps")
    ]


def test_a_run_that_passes_starts_its_ranks_once(tmp_path: Path) -> None:
    record = record_of(tmp_path, "RIGHT")
    assert {result.status for result in record.results} == {Status.PASS}
    assert [path.name for path in (record.folder / "logs").iterdir()] == ["tp2"]


def test_the_first_mistake_is_told_though_the_ranks_fail_when_it_is_put_right(tmp_path: Path) -> None:
    record = record_of(tmp_path, "PROUD")
    for result in record.results:
        assert result.first_divergence is not None
        assert (result.first_divergence.tensor, result.further, result.put_right) == ("hidden", (), "")
    [note] = [note for note in record.notes if "further mistakes" in note]
    assert note.startswith("tp 2: looking for further mistakes failed: rank 0 of 2 failed with ArithmeticError")


def test_an_error_of_the_search_leaves_what_was_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise ArithmeticError("no idea")

    monkeypatch.setattr("tp_harness.verification.grafts.independent", fails)
    record = record_of(tmp_path, "THRICE")
    assert [r.first_divergence.tensor for r in record.results if r.first_divergence] == ["hidden"] * 2
    [note] = [note for note in record.notes if "further mistakes were not found out" in note]
    assert "which is a bug in tp-harness: ArithmeticError: no idea" in note
