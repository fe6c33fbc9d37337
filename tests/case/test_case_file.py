"""A file of Cases is run once by each process and rank, by all with the same text, and leaves sys.path as it was."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest

from tp_harness import Options, verify
from tp_harness.case.case_file import forget_files, load_case, run_file
from tp_harness.errors import UsageError
from tp_harness.results.result import Status

# Each run of the file leaves a line that says in which process and thread; what a Case calls imports a neighbour then.
FILE = """
import os
import threading
from pathlib import Path
import torch
from torch import nn
from tp_harness import Case, Shard, current_group

with Path(__file__).with_name("runs").open("a") as file:
    print(os.getpid(), threading.current_thread().name, file=file)


class Up(nn.Module):
    def __init__(self, size=1):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(8 // size, 4))

    def forward(self, x):
        return x @ self.weight.T


def sharded():
    import told_late
    {rank}
    return Up(told_late.size(current_group()))


CASE = Case(
    name="up", reference=Up, sharded=sharded, plan={{"weight": Shard(0)}}, output=Shard(-1),
    inputs=lambda generator: (torch.randn(3, 4, generator=generator),),
)
"""


def file_in(folder: Path, rank: str = "pass") -> Path:
    (folder / "told_late.py").write_text("def size(group): return group.size\n")
    path = folder / "own.py"
    path.write_text(FILE.format(rank=rank))
    return path


@pytest.mark.parametrize("backend", ["gloo", "local"])
def test_a_file_is_run_once_by_this_process_and_by_each_rank(tmp_path: Path, backend: str) -> None:
    path, before = file_in(tmp_path), list(sys.path)
    record = verify(Options(case=f"{path}:CASE", degrees=(1, 2), draws=2, backend=backend, out=tmp_path / "out"))
    assert {result.status for result in record.results} == {Status.PASS, Status.PROVED} and len(record.results) == 6
    runs = (tmp_path / "runs").read_text().splitlines()
    assert len(runs) == len(set(runs)) == 4  # this process, and the ranks of tp 1 and 2
    assert sys.path == before


def test_ranks_refuse_a_file_that_was_changed_before_they_read_it(tmp_path: Path) -> None:
    """The factory changes the file when a rank's module is first tried, before any rank has read it."""
    change = "own = Path(__file__); current_group().rank or own.write_text(own.read_text() + '# edited')"
    path = file_in(tmp_path, change)
    asked = Options(case=f"{path}:CASE", degrees=(2, 4), draws=1, backend="gloo", dtypes=("float32",), out=tmp_path)
    record = verify(asked)
    assert {result.status for result in record.results} == {Status.CRASH}
    text = record.results[-1].reason
    assert "own.py: its text has the sha256" in text and "the run was started with" in text, text


def test_another_text_is_refused_and_the_same_is_not_run_again(tmp_path: Path) -> None:
    path = file_in(tmp_path)
    text = hashlib.sha256(path.read_bytes()).hexdigest()
    case = load_case(f"{path}:CASE", text)
    assert load_case(f"{path}:CASE") is load_case(f"{path}:CASE", text) is case
    path.write_text(path.read_text() + "# edited")
    assert load_case(f"{path}:CASE", text) is case, "a run goes on with what it has read"
    assert load_case(f"{path}:CASE") is not case, "the next one reads it anew"
    forget_files()
    with pytest.raises(UsageError, match=rf"its text has the sha256 .*, and the run was started with {text:.12}"):
        run_file(path, text)


RANK_OF_THE_MODULE = """
import torch
from torch import nn
from tp_harness import Case, Shard, current_group

RANK = 0


class Reference(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(16, 32, bias=False), nn.Linear(32, 16, bias=False)

    def forward(self, x):
        return self.down(torch.relu(self.up(x)))


class Sharded(nn.Module):
    def __init__(self):
        global RANK
        super().__init__()
        RANK, ranks = current_group().rank, current_group().size
        self.up, self.down = nn.Linear(16, 32 // ranks, bias=False), nn.Linear(32, 16 // ranks, bias=False)

    def forward(self, x):
        return whole(self.down(whole(torch.relu(self.up(x)))))


def whole(part):
    columns, group = part.shape[-1], current_group()
    full = torch.zeros(*part.shape[:-1], columns * group.size, dtype=part.dtype)
    full[..., RANK * columns : (RANK + 1) * columns] = part
    return group.all_reduce(full)


CASE = Case(
    name="columns",
    reference=Reference,
    sharded=Sharded,
    plan={"up.weight": Shard(0), "down.weight": Shard(0)},
    inputs=lambda generator: (torch.randn(2, 8, 16, generator=generator),),
)
"""


def test_ranks_that_are_threads_share_no_names_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "columns.py"
    path.write_text(RANK_OF_THE_MODULE)
    asked = Options(case=f"{path}:CASE", degrees=(2,), dtypes=("float32",), backend="local", out=tmp_path / "out")
    assert [result.status for result in verify(asked).results] == [Status.PASS]


def test_the_text_that_was_asked_for_last_is_the_one_that_ranks_are_told(tmp_path: Path) -> None:
    path, texts = tmp_path / "counted.py", ("N = 1\n", "N = 2\n")
    for text in (*texts, texts[0]):
        path.write_text(text)
        file = run_file(path)
        assert file.names["N"] == int(text[-2])
        assert file.sha256 == hashlib.sha256(text.encode()).hexdigest()


def test_nothing_of_the_harness_is_in_how_a_file_is_compiled(tmp_path: Path) -> None:
    path = tmp_path / "fields.py"
    path.write_text("class Point:\n    x: int\n")
    assert run_file(path).names["Point"].__annotations__ == {"x": int}, "its annotations are no text"
