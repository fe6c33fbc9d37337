"""A whole run of a wrong module: its degrees and dtypes speak of one cause."""

from __future__ import annotations

from pathlib import Path

import pytest
from own_runs import run_case

from tp_harness.report.failure_text import diagnosis_text
from tp_harness.results.result import Result, Status
from tp_harness.results.run_record import RunRecord, read_run

CASES = '''
import torch
from torch import nn
from tp_harness import Case, Shard
from tp_harness.parallel.group import current_group

class Mlp(nn.Module):
    scale = 0.5

    def __init__(self):
        super().__init__()
        self.group = current_group()
        self.up = nn.Linear(12, 64 // self.group.size, bias=False)
        self.down = nn.Linear(64 // self.group.size, 96, bias=False)

    def forward(self, x):
        return self.scale * self.sum(self.down(torch.relu(self.up(x))))

    def sum(self, x):
        return self.group.all_reduce(x)

class Unscaled(Mlp):
    """Its factor 0.5 is missing, which at two ranks is like a sum too much."""

    scale = 1.0

class Twice(Mlp):
    def sum(self, x):
        return self.group.all_reduce(self.group.all_reduce(x))

class Coarse(Twice):
    """In 16 bits its numbers are also off otherwise, by more than rounding."""

    def forward(self, x):
        y = super().forward(x)
        return y + y.abs().amax() * torch.linspace(-0.1, 0.1, 96).to(x.dtype) if x.dtype is torch.bfloat16 else y

def case(sharded):
    return Case(
        name="own", reference=Mlp, sharded=sharded, plan={"up.weight": Shard(0), "down.weight": Shard(1)},
        inputs=lambda g: (torch.randn(4, 24, 12, generator=g),),
    )

UNSCALED, TWICE, COARSE = case(Unscaled), case(Twice), case(Coarse)
'''


def record_of(folder: Path, name: str, degrees: tuple[int, ...], **fields: object) -> RunRecord:
    return run_case(folder, CASES, name, degrees, **fields)


def causes(results: list[Result]) -> list[tuple[str, ...]]:
    return [tuple(cause.name for cause in result.diagnosis) for result in results if result.status is not Status.PASS]


@pytest.mark.parametrize(
    ("name", "degrees", "told"),
    [
        ("UNSCALED", (1, 2, 4), ("scaled",)),
        ("UNSCALED", (2, 4), ("scaled",)),
        ("UNSCALED", (2,), ("times tp", "scaled")),
        ("TWICE", (1, 2, 4), ("times tp",)),
        ("TWICE", (1, 2), ("times tp",)),
        ("TWICE", (2,), ("times tp", "scaled")),
    ],
)
def test_all_degrees_agree_on_a_cause(
    tmp_path: Path, name: str, degrees: tuple[int, ...], told: tuple[str, ...]
) -> None:
    record = record_of(tmp_path, name, degrees, dtypes=("float32",))
    found = causes(record.results)
    assert found and set(found) == {told}
    assert read_run(record.folder).results == record.results


def test_bfloat16_allows_a_cause_the_rounding_of_sums_that_the_verdict_allows(tmp_path: Path) -> None:
    record = record_of(tmp_path, "TWICE", (2, 4), dtypes=("bfloat16",))
    assert causes(record.results) == [("times tp",)] * 2


def test_what_float32_found_is_told_where_bfloat16_finds_nothing(tmp_path: Path) -> None:
    record = record_of(tmp_path, "COARSE", (1, 2))
    [single, half] = [result for result in record.results if result.tp == 2]
    assert causes([single, half]) == [("times tp",), ()]
    assert half.as_float32 == single.diagnosis
    [text] = diagnosis_text(half)
    assert text.startswith("cause as in float32: times tp: it is 2 times what it should be")
