"""What marked tests start: jobs under torchrun or verify with a keeper, and bodies called in forked children."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command import CASES
from inner_pytest import Project, said
from living import lives

from tp_harness.system.core_pool import CorePool

pytest_plugins = ("pytester",)
PATIENCE = 60.0

FAMILY = """
import subprocess, sys, time
from pathlib import Path
sleep = [sys.executable, "-c", "import time; time.sleep(3600)"]
for session in (False, True):
    child = subprocess.Popen(sleep, start_new_session=session)
    Path(f"{child.pid}.child").touch()
Path("all.up").touch()
if "return" not in sys.argv:
    time.sleep(3600)
sys.exit(7)
"""


@pytest.fixture
def project(pytester: pytest.Pytester) -> Project:
    return Project(pytester)


def keep(folder: Path, *arguments: str, fds: tuple[int, ...] = ()) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-m",
        "tp_harness.pytest_plugin.job_supervisor",
        sys.executable,
        "-c",
        FAMILY,
        *arguments,
    ]
    return subprocess.Popen(command, cwd=folder, stdin=subprocess.PIPE, pass_fds=fds, start_new_session=True)


def wait_for(path: Path) -> None:
    end = time.monotonic() + PATIENCE
    while not path.exists():
        assert time.monotonic() < end, f"{path} never came"
        time.sleep(0.02)


def still_alive(folder: Path) -> list[int]:
    pids = [int(path.stem) for path in folder.glob("*.child")]
    assert len(pids) == 2
    return [pid for pid in pids if lives(pid)]


def test_a_keeper_ends_with_its_commands_code_and_leaves_nobody(tmp_path: Path) -> None:
    keeper = keep(tmp_path, "return")
    assert keeper.wait(PATIENCE) == 7
    assert not still_alive(tmp_path)


@pytest.mark.parametrize("end", ["its input ends", "SIGTERM"])
def test_a_keeper_that_is_told_to_ends_the_whole_family(tmp_path: Path, end: str) -> None:
    pool = CorePool(tmp_path / "locks", tuple(range(8)))
    lease = pool.acquire(8)
    keeper = keep(tmp_path, fds=lease.fds)
    wait_for(tmp_path / "all.up")
    for fd in lease.fds:
        os.close(fd)  # as when the worker is killed
    lease.fds = ()
    assert pool.free() == (), "the keeper holds them"
    if end == "SIGTERM":
        keeper.send_signal(signal.SIGTERM)
    assert keeper.stdin
    keeper.stdin.close() if end != "SIGTERM" else None
    keeper.wait(PATIENCE)
    assert not still_alive(tmp_path)
    assert pool.free() == tuple(range(8))


RANKS = """
import os, sys

word, rank = sys.argv[1], os.environ["RANK"]
if word == "fail" and rank == "1":
    raise ArithmeticError("no sum today")
import torch, torch.distributed as dist
dist.init_process_group("gloo")
total = torch.ones(1)
dist.all_reduce(total)
line = f"rank {rank} of {int(total)} on {os.environ['NEURON_RT_VISIBLE_CORES']} {word}"
os.write(1, line.encode() + b"\\n")  # at once: ranks share the file
dist.destroy_process_group()
"""

JOBS = """
@pytest.mark.tp(2)
@pytest.mark.parametrize("word", ["hello", "fail"])
def test_run(tp_group, word):
    done = tp_group.run("ranks.py", word)
    assert sorted(line for line in done.output.splitlines() if line.startswith("rank")) == [
        f"rank {rank} of 2 on {tp_group.cores} {word}" for rank in (0, 1)
    ]
    assert done.log.read_text() == done.output and done.seconds > 0

@pytest.mark.tp(2)
def test_hang(tp_group):
    tp_group.run("ranks.py", timeout=0.5)

@pytest.mark.tp(1, 2)
def test_verify(tp_group, tp_degree):
    subject = ["--component", "mpl"] if tp_degree == 1 else ["--case", "cases.py:WRONG"]
    tp_group.verify(*subject, "--draws", "1", "--dtype", "float32")
"""


def test_jobs_of_many_ranks(project: Project) -> None:
    (project.path / "ranks.py").write_text(RANKS)
    (project.path / "cases.py").write_text(CASES)
    project.tests(JOBS)
    result = project.run_apart("-n", "2")
    result.assert_outcomes(passed=1, failed=4)
    text = said(result)
    assert (
        "ArithmeticError: no sum today" in text and "RankError: torchrun at tp 2: ended with code 1; its outpu" in text
    )
    assert "ChildFailedError" not in text, "torchrun's own traceback"
    assert "torchrun at tp 2 did not end within 0.5 s, so every process of it was ended; its output: " in text
    assert "RankError: tp-harness verify at tp 1: unknown component 'mpl'. Did you mean 'mlp'?" in text
    assert "RankError: tp-harness verify at tp 2: own float32 MISMATCH: replicas: output.0: rank 1 holds" in text
    results = {(r.test.partition("::")[2], r.component, r.tp): r for r in project.results()}
    assert {key: r.status.value for key, r in results.items()} == {
        ("test_run[hello]", "test_it.py::test_run[hello]", 2): "PASS",
        ("test_run[fail]", "test_it.py::test_run[fail]", 2): "CRASH",
        ("test_hang", "test_it.py::test_hang", 2): "TIMEOUT",
        ("test_verify", "test_it.py::test_verify", 1): "CRASH",
        ("test_verify", "own", 2): "MISMATCH",
    }
    gate = results["test_verify", "own", 2].gate
    assert gate and gate.value > gate.limit
    result.stdout.re_match_lines([rf"test_it.py::test_verify: own layer 0 float32 +- +MISMATCH {gate.value:.1e}$"])


MANY = """
import os
import pathlib
import time
rank = int(os.environ["RANK"])
said = pathlib.Path(__file__).with_name("said")
if rank == 2:
    os.write(1, b"only rank 2 says this\\n")
    said.touch()
for step in range(40):
    os.write(1, f"[rank{rank}]: step {step % 20}\\n".encode())
while not said.exists():  # the first rank that raises ends the others
    time.sleep(0.01)
raise ArithmeticError("no sum today")
"""


def test_what_one_rank_says_is_not_lost_among_what_all_say(project: Project) -> None:
    (project.path / "many.py").write_text(MANY)
    project.tests("@pytest.mark.tp(8)\ndef test_run(tp_group): tp_group.run('many.py')")
    result = project.run_apart()
    result.assert_outcomes(failed=1)
    assert "only rank 2 says this\n" in said(result)
    assert re.search(r"^E +step 19  \(\d+ times\)$", said(result), flags=re.MULTILINE)


FORKED = """
@pytest.fixture
def value():
    return {"pid": os.getpid()}

@pytest.mark.tp(1)
def test_passes(value, record_property):
    assert os.getpid() != value["pid"] == os.getppid()
    assert os.environ["NEURON_RT_VISIBLE_CORES"] == "0"
    record_property("seen", "in the child")

@pytest.mark.tp(1)
def test_fails(value):
    print("printed in the child")
    left = [1, 2]
    assert left == [1, 3]

@pytest.mark.tp(1)
def test_raises():
    raise KeyError("b")

@pytest.mark.tp(1)
def test_differs():
    import torch
    from tp_harness import validate_accuracy
    validate_accuracy(lambda x: x + 1, [(torch.zeros(2),)], cpu_callable=lambda x: x)

@pytest.mark.tp(1)
def test_skips():
    pytest.skip("no reason at all")

@pytest.mark.tp(1)
def test_xfails():
    pytest.xfail("as expected")

@pytest.mark.tp(1)
def test_dies():
    os.abort()

@pytest.mark.tp(1)
def test_leaves():
    os._exit(5)

@pytest.mark.tp(1)
@pytest.mark.timeout(100)
def test_sleeps():
    with open("sleeper", "w") as file:
        file.write(str(os.getpid()))
    from tp_harness.launch.process import process_state
    while process_state(os.getppid()) != "S":  # until it waits for this one
        time.sleep(0.01)
    os.kill(os.getppid(), signal.SIGALRM)  # pytest-timeout's: the time is up when the sleeper is there, and not before
    time.sleep(3600)

@pytest.mark.tp(2)
def test_larger_ones_are_called_here(value):
    assert os.getpid() == value["pid"]
"""


def test_a_body_in_a_child_ends_as_it_would_have(project: Project) -> None:
    project.tests(FORKED)
    result = project.run_apart("--neuron-fork", "--junitxml", "own.xml", "-rA")
    result.assert_outcomes(passed=2, failed=6, skipped=1, xfailed=1)
    text = said(result)
    for words in (
        "assert [1, 2] == [1, 3]",
        "printed in the child",
        "no reason at all",
        "as expected",
        "the process of this test was killed by SIGABRT",
        "the process of this test left with exit code 5",
        "Timeout (>100.0s) from pytest-timeout",
    ):
        assert words in text
    reasons = {r.test.partition("::")[2]: r.reason for r in project.results()}
    assert reasons["test_xfails"] == "failed as expected: as expected"
    assert reasons["test_fails"] == "AssertionError: assert [1, 2] == [1, 3]"
    statuses = {name: status for (name, _), status in project.statuses().items()}
    assert (statuses["test_fails"], statuses["test_raises"], statuses["test_differs"]) == (
        "FAILED",
        "CRASH",
        "MISMATCH",
    )
    assert '<property name="seen" value="in the child" />' in (project.path / "own.xml").read_text()
    assert not lives(int((project.path / "sleeper").read_text()))


def test_the_example_in_the_docs(project: Project) -> None:
    text = (Path(__file__).parents[2] / "docs" / "pytest.md").read_text(encoding="utf-8")
    files = dict(re.findall(r"`([\w.]+)`:\n\n```python\n(.*?)```", text, flags=re.DOTALL))
    assert set(files) == {"test_mlp.py", "ranks.py"}
    for name, content in files.items():
        (project.path / name).write_text(content)
    result = project.run_apart("-k", "tp1 or (test_script and tp2)")
    result.assert_outcomes(passed=3, deselected=4)
    pattern = r"test_mlp.py::test_verdict: mlp layer 0 float32 +PASS \d\.\de-07 +-$"
    result.stdout.re_match_lines([pattern])
    options = set(re.findall(r"^\| `(--[\w-]+)", text, flags=re.MULTILINE))
    assert options == set(re.findall(r"^  (--(?:neuron|tp)-[\w-]+)", said(project.run("--help")), flags=re.MULTILINE))
