"""The local backend: gloo's bits, a verdict whatever a rank does, and breakpoints that work."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from command import PATIENCE
from ladder import options
from rank_tensors import finish, run, tensors

from tp_harness.backends import choose_backend
from tp_harness.backends.base import Session
from tp_harness.backends.local_group import ring_sum
from tp_harness.config.options import Resolved
from tp_harness.models.gpt_oss import FAMILY
from tp_harness.parallel.placements import same_bits
from tp_harness.prepare.prepare import prepare_one

TARGETS = tuple(
    (name, layer)
    for name in FAMILY.components
    for layer in ((0, 1) if name in ("attention", "transformer_block") else (0,))
)
CASES = '''
import sys, time
from pathlib import Path
import torch
import torch.distributed as dist
from torch import nn
from tp_harness import Case, Replicate, Shard
from tp_harness.parallel.group import current_group

class Full(nn.Module):
    def __init__(self, outputs=1):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.outputs = outputs

    def forward(self, x):
        return (x,) * self.outputs

class Everything(Full):
    """Sums of many lengths, one slice of a sum, a gather, and a broadcast."""

    def forward(self, x):
        group = current_group()
        mine = x * 1.1 ** group.rank + group.rank
        rows = mine.flatten()
        sums = [group.all_reduce(rows[:n].clone()) for n in (*range(1, 18), 1001, 1003)]
        joined = torch.cat(sums)
        part = group.reduce_scatter(mine.clone(), 1)
        return joined, part, group.all_gather(mine, 0), group.broadcast(mine.clone(), group.size - 1)

class Raises(Full):
    def forward(self, x):
        if current_group().rank == 1:
            raise ArithmeticError("rank 1 cannot add")
        return (current_group().all_reduce(x),)

class Skips(Full):
    def forward(self, x):
        return (x if current_group().rank == 1 else current_group().all_reduce(x),)

class Extra(Full):
    def forward(self, x):
        return (current_group().all_reduce(x) if current_group().rank == 2 else x,)

class Mixed(Full):
    def forward(self, x):
        group = current_group()
        return (group.all_gather(x, 0) if group.rank == 3 else group.all_reduce(x),)

class Sleeps(Full):
    def forward(self, x):
        if current_group().rank == 1:
            Path(__file__).with_name("asleep").touch()
            time.sleep(3600)
        return (current_group().all_reduce(x),)

class Direct(Full):
    def forward(self, x):
        dist.all_reduce(x)
        return (x,)

class Breaks(Full):
    def forward(self, x):
        self.group = current_group()
        if self.group.rank == 1:
            breakpoint()
        return (self.group.all_reduce(x) / self.group.size,)

from tp_harness.parallel.mesh import Mesh

class Astray(Full):
    def forward(self, x):
        mesh = Mesh({"ep": 2, "tp": 2}, current_group())
        return (mesh["ep" if current_group().rank == 3 else "tp"].all_reduce(x),)

def case(sharded, outputs=1):
    return Case(name=sharded.__name__, reference=lambda: Full(outputs), sharded=sharded, replicated=True,
                output=(Replicate(),) * outputs, inputs=lambda g: (torch.randn(24, 48, generator=g),))

EVERYTHING, RAISES, SKIPS, EXTRA, MIXED = case(Everything, 4), case(Raises), case(Skips), case(Extra), case(Mixed)
ASTRAY = case(Astray)
SLEEPS, DIRECT, BREAKS = case(Sleeps), case(Direct), case(Breaks)
'''


@pytest.fixture(scope="module")
def gloo() -> Iterator[Session]:
    with choose_backend("gloo").open() as session:
        yield session


def check_same(gloo: Session, chosen: Resolved, folder: Path) -> int:
    """Run at every degree on both backends; how many tensors were compared."""
    compared = 0
    (folder / "files").mkdir()
    material = prepare_one(chosen).material(folder / "files", lambda _text: None)
    for tp in chosen.degrees:
        assert finish(gloo, material, tp, folder / "gloo", PATIENCE).ok
        theirs = tensors(material, tp)
        assert run(material, tp, "local", folder / "local").ok
        ours = tensors(material, tp)
        assert ours.keys() == theirs.keys()
        assert [key for key in ours if not same_bits(ours[key], theirs[key])] == []
        compared += len(ours)
    return compared


def test_every_component_degree_and_dtype_has_gloo_s_bits(gloo: Session, tmp_path: Path) -> None:
    chosen = options(targets=TARGETS, degrees=(1, 2, 8, 32))
    ranks, names = sum(chosen.degrees), 2 * len(TARGETS)
    assert check_same(gloo, chosen, tmp_path) > ranks * names  # more: rope has two outputs, routers are recorded


@pytest.mark.parametrize("degrees", [(2, 3), (8,)], ids=str)
def test_every_collective_has_gloo_s_bits_whatever_the_length(
    gloo: Session, tmp_path: Path, degrees: tuple[int, ...]
) -> None:
    cases = tmp_path / "cases.py"
    cases.write_text(CASES)
    chosen = options(targets=(("case", 0),), case=f"{cases}:EVERYTHING", degrees=degrees)
    assert check_same(gloo, chosen, tmp_path) == sum(degrees) * 2 * 4


def test_the_order_of_a_sum_matters() -> None:
    """Otherwise equal bits would prove nothing."""
    parts = [torch.randn(96, generator=torch.Generator().manual_seed(i)) for i in range(8)]
    assert not torch.equal(ring_sum(parts), torch.stack(parts).sum(0))
    assert not torch.equal(ring_sum(parts), ring_sum(parts[::-1]))
    torch.testing.assert_close(ring_sum(parts), torch.stack(parts).sum(0))


ENDINGS = {
    "RAISES": (
        4,
        "crash",
        1,
        "rank 1 of 4 failed with ArithmeticError: rank 1 cannot add (forward of Raises in float32; cases.py:34 in "
        "forward); its log: ",
    ),
    "SKIPS": (
        4,
        "crash",
        1,
        "rank 1 of 4 failed with CollectiveError: it returned without entering all_reduce [24, 48] float32 over 4 "
        "ranks, in which ranks 0, 2, 3 wait (rank 1 had returned before); its log: ",
    ),
    "SKIPS of two": (
        2,
        "crash",
        1,
        "rank 1 of 2 failed with CollectiveError: it returned without entering all_reduce [24, 48] float32 over 2 "
        "ranks, in which rank 0 waits (rank 1 had returned before); its log: ",
    ),
    "EXTRA": (
        4,
        "crash",
        2,
        "rank 2 of 4 failed with CollectiveError: it waits in all_reduce [24, 48] float32 over 4 ranks, which ranks 0, "
        "1, 3 never entered (ranks 0, 1, 3 had returned before); its log: ",
    ),
    "MIXED": (
        4,
        "crash",
        3,
        "rank 3 of 4 failed with CollectiveError: it entered all_gather [24, 48] float32 over 4 ranks where rank 0 "
        "entered all_reduce [24, 48] float32 over 4 ranks; its log: ",
    ),
    "ASTRAY": (
        4,
        "crash",
        3,
        "rank 3 of 4 failed with CollectiveError: it waits in all_reduce [24, 48] float32 over ranks 1, 3 of axis ep "
        "where rank 2 waits in all_reduce [24, 48] float32 over ranks 2, 3 of axis tp, so that none can continue "
        "(ranks 0, 1 had returned before); its log: ",
    ),
    "SLEEPS": (
        2,
        "timeout",
        1,
        "the ranks did not finish Sleeps.0.d0 within 1 s: it was the turn of rank 1 of 2, which neither returned nor "
        "entered a collective; its stack: ",
    ),
    "DIRECT": (
        2,
        "crash",
        0,
        "rank 0 of 2 failed with ValueError: Default process group has not been initialized, please make sure to call "
        "init_process_group. (forward of Direct in float32; cases.py:59 in forward); its log: ",
    ),
}


@pytest.mark.parametrize("name", ENDINGS)
def test_whatever_a_rank_does_there_is_a_verdict_that_names_it(tmp_path: Path, name: str) -> None:
    tp, kind, rank, message = ENDINGS[name]
    cases = tmp_path / "cases.py"
    cases.write_text(CASES)
    chosen = options(targets=(("case", 0),), case=f"{cases}:{name.split(maxsplit=1)[0]}", dtypes=("float32",))
    material = prepare_one(chosen).material(tmp_path, lambda _text: None)
    with choose_backend("local").open() as session:
        job = material.job(tp, material.targets).write()
        late = kind == "timeout"
        running = session.start(job, tp=tp, log_dir=tmp_path / "logs", timeout=1.0 if late else PATIENCE)
        while late and not (tmp_path / "asleep").exists():  # its time begins when rank 1 does, however long that takes
            time.sleep(0.01)
        while (outcome := running.poll()) is None:
            time.sleep(0.01)
    log = tmp_path / "logs" / f"rank{rank}.log"
    assert (outcome.ok, outcome.kind, outcome.failed_rank) == (False, kind, rank)
    assert outcome.message == f"{message}{log}"
    if "SKIPS" not in name:  # it is gone, and so is its stack
        assert f'{cases}", line ' in log.read_text()


def test_a_breakpoint_stops_every_rank_and_talks_to_the_terminal(tmp_path: Path) -> None:
    cases = tmp_path / "cases.py"
    cases.write_text(CASES)
    ours, theirs = pty.openpty()
    options = [
        "--case",
        f"{cases}:BREAKS",
        "--backend",
        "local",
        "--tp",
        "2",
        "--draws",
        "1",
        "--no-fault-control",
        "--dtype",
        "float32",
    ]
    command = [sys.executable, "-m", "tp_harness", "verify", "--out", str(tmp_path / "out"), *options]
    environment = os.environ | {"TERM": "xterm", "PYTHON_BASIC_REPL": "1", "PYTHONBREAKPOINT": "pdb.set_trace"}
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    said = until(ours, "(Pdb) ")
    os.write(ours, b"p 'rank', self.group.rank, 'of', self.group.size\n")
    said = until(ours, "(Pdb) ")
    assert "('rank', 1, 'of', 2)" in said
    os.write(ours, b"c\n")
    assert "1 PASS" in until(ours, "run.json")
    assert process.wait(PATIENCE) == 0
    os.close(ours)


def until(terminal: int, text: str) -> str:
    """What the terminal shows until `text` comes."""
    shown, end = "", time.monotonic() + PATIENCE
    while text not in shown and time.monotonic() < end:
        if select.select([terminal], [], [], 1.0)[0]:
            shown += os.read(terminal, 65536).decode(errors="replace")
    assert text in shown, shown
    return shown
