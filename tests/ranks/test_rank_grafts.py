"""What a rank passes on in the place of a tapped tensor."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tp_harness.arithmetic.exact import Exact
from tp_harness.arithmetic.floats import Floats
from tp_harness.arithmetic.residues.field import Field
from tp_harness.case.case import Case
from tp_harness.case.taps import tapping
from tp_harness.config.dtypes import EXACT
from tp_harness.parallel.group import Group
from tp_harness.parallel.placements import KVHeads, Partial, Placement, Replicate, Shard, same_bits
from tp_harness.ranks.grafts import Grafts, right_shard, write_right
from tp_harness.ranks.job import Job, Subject, Task, read_job
from tp_harness.ranks.rank_report import modulo

PLACEMENTS = [Replicate(), Shard(-1), Shard(1), KVHeads(-1, 8), Partial()]
FULL = torch.randn(2, 6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def case(placement: Placement) -> Case:
    none = torch.nn.Identity
    return Case(name="own", reference=none, sharded=none, inputs=lambda _: (FULL,), taps={"tap": placement})


def given(folder: Path, placement: Placement, own: torch.Tensor, rank: int = 0, size: int = 2) -> torch.Tensor:
    write_right(folder / "right", {"tap": FULL})
    return Grafts(folder / "right", ("tap",), case(placement), Group(rank, size), Floats(torch.float64))("tap", own)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_summands_add_up_bit_for_bit_and_any_other_reduction_is_wrong(size: int, dtype: torch.dtype) -> None:
    full = (100 * FULL).to(dtype)
    parts = [right_shard(Partial(), full, rank, size) for rank in range(size)]
    assert same_bits(torch.stack(parts).sum(0), full)
    for rank in range(size if size > 1 else 0):
        assert not torch.equal(torch.stack(parts).sum(0) - parts[rank], full), "a rank that is dropped is missed"
        assert not torch.equal(parts[rank], full), "one rank's summand is not the sum"
        assert not torch.equal(torch.stack(parts).amax(0), full)


@pytest.mark.parametrize("placement", PLACEMENTS, ids=str)
def test_a_value_has_the_shape_and_dtype_of_the_rank_s_own(tmp_path: Path, placement: Placement) -> None:
    right = right_shard(placement, FULL, 1, 2)
    for own in (torch.zeros(right.shape), torch.zeros(right.shape, dtype=torch.bfloat16).flatten(0, 1)):
        value = given(tmp_path, placement, own, rank=1)
        assert same_bits(value, right.to(own.dtype).view(own.shape))


@pytest.mark.parametrize("placement", PLACEMENTS, ids=str)
def test_in_exact_arithmetic_a_value_has_its_numbers_and_nothing_escapes(tmp_path: Path, placement: Placement) -> None:
    exact = Exact(Field.drawn(13))
    x = exact.draw("x", FULL.float())
    with exact.computing():
        full = torch.cat((3 * x[:1], x[1:].exp()))  # the exponents of the second are unknown
    shadow, residues = exact.split(full, exponents=True)
    write_right(tmp_path / "right", {"tap": shadow} | {modulo("tap", i): own for i, own in enumerate(residues)})
    parts = []
    for rank in range(2):
        right = torch.stack([right_shard(placement, row, rank, 2) for row in exact.memory.read(full)])
        own = torch.zeros(right.shape[1:], dtype=torch.bfloat16).flatten(0, 1)
        with exact.computing():
            value = Grafts(tmp_path / "right", ("tap",), case(placement), Group(rank, 2), exact)("tap", own)
        assert (value.shape, value.dtype) == (own.shape, own.dtype)
        parts.append(exact.memory.read(value).view(right.shape))
        torch.testing.assert_close(parts[-1], right, rtol=0, atol=0, equal_nan=True)
    if isinstance(placement, Partial):
        torch.testing.assert_close(sum(parts), exact.memory.read(full), rtol=0, atol=0, equal_nan=True)
    assert exact.seen.escapes == []


def test_whole_numbers_stay_whole_in_exact_arithmetic(tmp_path: Path) -> None:
    write_right(tmp_path / "right", {"tap": torch.arange(12).view(3, 4)})
    exact = Exact(Field.drawn(13))
    value = Grafts(tmp_path / "right", ("tap",), case(Replicate()), Group(0, 2), exact)("tap", torch.zeros(3, 4).int())
    assert same_bits(value, torch.arange(12).view(3, 4).int())


@pytest.mark.parametrize("own", [torch.zeros(2, 6, 9), torch.zeros(3, 6, 8), torch.zeros(2, 8, 6)])
def test_what_does_not_fit_stays(tmp_path: Path, own: torch.Tensor) -> None:
    assert given(tmp_path, Replicate(), own) is own


def test_calls_of_one_submodule_get_their_own_rows_and_a_tap_records_what_was_there_before(tmp_path: Path) -> None:
    class Experts(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tap, self.other = torch.nn.Identity(), torch.nn.Identity()

        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            return [self.other(self.tap(x[start : start + 4])) for start in (0, 4, 8)]

    rows, own = FULL.flatten(0, 1), torch.zeros(12, 8)
    write_right(tmp_path / "right", {"tap": rows, "other": rows})
    grafts = Grafts(tmp_path / "right", ("tap",), case(Replicate()), Group(0, 1), Floats(torch.float64))
    module, sources = Experts(), {"tap": ("tap", None), "other": ("other", None)}
    with tapping(module, sources, graft=grafts) as record:  # type: ignore[arg-type]
        outputs = module(own)
    assert torch.equal(record["tap"], own)
    assert torch.equal(record["other"], rows.float()) and torch.equal(torch.cat(outputs), rows.float())


def test_one_of_several_outputs_is_replaced() -> None:
    class Pair(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> object:
            return x, x + 1

    class Two(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pair = Pair()

        def forward(self, x: torch.Tensor) -> object:
            return self.pair(x)

    module = Two()
    with tapping(module, {"tap": ("pair", 1)}, graft=lambda _name, own: own * 0) as record:
        first, second = module(torch.ones(3))  # type: ignore[misc]
    assert (first.sum(), second.sum(), record["tap"].sum()) == (3, 0, 6)


def test_grafts_of_a_task_survive_the_job_file_and_share_the_clean_task_s_right_values(tmp_path: Path) -> None:
    task = Task(component="own", layer=0, draw=0, fault="norm-eps", grafts=("a", "b"), number=2)
    subject = Subject(batch_size=1, seq_len=1, case_spec="a.py:CASE")
    job = Job(tp=2, subject=subject, tasks=(task,), dtypes=("float32",), weights=(), folder=str(tmp_path))
    read, _ = read_job(job.write())
    assert read.tasks == (task,)
    assert read.right_path(task) == job.right_path(task.clean) != job.inputs_path(task)
    in_float32, exact = (replace(task, dtype=dtype) for dtype in ("float32", EXACT))
    assert job.right_path(in_float32) == job.right_path(task) != job.right_path(exact), "their right values differ"
