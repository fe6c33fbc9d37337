"""The pytest plugin with xdist's workers: one pool for all, a killed worker's cores, groups, and Neuron's rules.

Neuron is played by a file: whoever has it open holds the device.
"""

from __future__ import annotations

import fcntl
import time
from importlib.metadata import version

import pytest
from inner_pytest import Project, said
from living import lives

from tp_harness.pytest_plugin.pool_usage import core_seconds, ideal, occupations, shared, span
from tp_harness.pytest_plugin.result_collector import title
from tp_harness.system.core_pool import CorePool

pytest_plugins = ("pytester",)

ALL = tuple(range(32))
MIX = """
@pytest.mark.tp(1, 2, 8, 32)
@pytest.mark.parametrize("seconds", [0.05, 0.1, 0.2, 0.1])
def test_stay(neuron_cores, seconds):
    time.sleep(seconds)

@pytest.mark.tp(1, 8)
@pytest.mark.parametrize("seconds", [0.1, 0.15, 0.2])
def test_other(seconds):
    time.sleep(seconds)
"""


@pytest.fixture
def project(pytester: pytest.Pytester) -> Project:
    return Project(pytester)


def test_no_two_tests_of_four_workers_share_a_core(project: Project) -> None:
    project.tests(MIX)
    result = project.run_apart("-n", "4")
    result.assert_outcomes(passed=22)
    results = occupations(project.results())
    assert sorted(r.tp for r in results) == sorted([1, 2, 8, 32] * 4 + [1, 8] * 3)
    assert shared(results) == []
    assert all(r.first_core % r.tp == 0 and r.first_core + r.tp <= 32 for r in results)
    assert project.record()["options"] == {"cores": "0-31", "pool": "virtual", "workers": 4}
    side_by_side = [(a, b) for a in results for b in results if a.acquired_s < b.acquired_s < a.released_s]
    assert side_by_side, "they ran one after the other, which proves nothing"
    assert ideal(results, pool=32, workers=4) <= span(results) + 1e-3
    line = (
        f"32 virtual cores: {core_seconds(results):.1f} core-seconds held within {span(results):.1f} s, ideal packing"
    )
    assert line in said(result)
    assert CorePool(project.locks, ALL).free() == ALL


def test_a_killed_worker_frees_its_cores(project: Project) -> None:
    (project.path / "ranks.py").write_text("""
import os, signal, sys, time
open(f"{os.getpid()}.rank", "w").close()
if os.environ["RANK"] == "1":
    os.kill(int(sys.argv[1]), signal.SIGKILL)  # the worker
time.sleep(3600)
""")
    project.tests("""
@pytest.mark.tp(2)
def test_dies(tp_group):
    tp_group.run("ranks.py", str(os.getpid()))

@pytest.mark.tp(32)
def test_waits():
    time.sleep(0.1)

@pytest.mark.tp(8)
def test_waits_too():
    pass
""")
    result = project.run_apart("-n", "2", "--neuron-wait", "100")
    result.assert_outcomes(passed=2, failed=1)
    assert project.statuses() == {("test_dies", 2): "CRASH", ("test_waits", 32): "PASS", ("test_waits_too", 8): "PASS"}
    [crashed] = [r for r in project.results() if r.status.value == "CRASH"]
    assert "crashed while running 'test_it.py::test_dies[tp2]'" in crashed.reason
    ranks = [int(path.stem) for path in project.path.glob("*.rank")]
    pool = CorePool(project.locks, ALL)
    end = time.monotonic() + 60
    while pool.free() != ALL:  # the keeper may outlive the run by its grace for torchrun
        assert time.monotonic() < end, f"only {pool.free()} are free"
        time.sleep(0.05)
    assert ranks and not any(lives(rank) for rank in ranks), "cores were given back under a living rank"


def test_dist_loadgroup(project: Project) -> None:
    project.tests("""
@pytest.mark.tp(1, 2)
@pytest.mark.xdist_group("together")
@pytest.mark.parametrize("x", ["a", "b@c"])
def test_grouped(x, worker_id):
    open(worker_id, "a").close()
""")
    result = project.run_apart("-n", "2", "--dist", "loadgroup", "-v")
    result.assert_outcomes(passed=4)
    assert project.statuses() == {(f"test_grouped[{x}]", tp): "PASS" for x in ("a", "b@c") for tp in (1, 2)}
    known = pytest.version_tuple >= (9, 2) and version("pytest-xdist") == "3.8.0"
    if "[tp1-a]@together" not in said(result) and known:
        pytest.skip("pytest from 9.2 on ignores the groups of pytest-xdist 3.8.0 (its issue 1386)")
    assert len(list(project.path.glob("gw*"))) == 1


def test_a_group_is_no_part_of_a_tests_name() -> None:
    assert title("test_it.py::test_a[b@c-tp2]@together") == "test_it.py::test_a[b@c]"
    assert title("test_it.py::test_a[tp2-x-tp1]") == "test_it.py::test_a[x-tp1]"
    assert title("test_it.py::TestA::test_a[tp32]") == "test_it.py::TestA::test_a"


def test_x_stops_all_workers(project: Project) -> None:
    project.tests("""
@pytest.mark.tp(1)
@pytest.mark.parametrize("x", range(50))
def test_a(x):
    time.sleep(0.05)
    assert x != 1
""")
    result = project.run_apart("-n", "2", "-x")
    assert result.ret == pytest.ExitCode.INTERRUPTED and "stopping after 1 failures" in said(result)
    assert CorePool(project.locks, ALL).free() == ALL
    assert not project.record()["finished"] and len(project.results()) < 50


BOUND = """
import glob
CORE = os.environ["NEURON_RT_VISIBLE_CORES"], os.environ["NEURON_RT_ROOT_COMM_ID"], os.environ["PJRT_DEVICE"]

@pytest.mark.tp(1)
@pytest.mark.parametrize("x", range(12))
def test_bound(x, neuron_cores, worker_id):
    device = open(os.environ["FAKE_DEVICE"])
    globals().setdefault("kept", device)  # the runtime keeps its device until the process ends
    assert CORE == (str(neuron_cores), f"127.0.0.1:{62182 + neuron_cores.first}", "NEURON")
    open(f"{worker_id}.core{neuron_cores}", "a").close()
    if x == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    while x > 3 and not glob.glob("gw2.core*"):  # until the replacement has had a test
        time.sleep(0.05)
"""


def test_each_worker_has_a_core_before_tests_are_imported_and_a_new_one_gets_the_freed(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.fake_neuron(monkeypatch, cores=2)
    project.tests(BOUND)
    result = project.run_apart("-p", "fake_neuron", "-n", "2")
    result.assert_outcomes(passed=11, failed=1)
    cores = {path.name.partition(".core")[::2] for path in project.path.glob("gw*.core*")}
    workers = dict(cores)
    assert len(cores) == len(workers) == 3, "one core for each worker"
    assert {workers["gw0"], workers["gw1"]} == {"0", "1"}
    assert set(workers) - {"gw0", "gw1"} == {"gw2"}, "a replacement has a new number"
    assert shared(project.results()) == []


MIXED = """
import sys

@pytest.fixture
def opened():
    with open(os.environ["FAKE_DEVICE"]) as device:
        globals()["kept"] = open(os.environ["FAKE_DEVICE"])
        yield device

@pytest.mark.tp(1)
def test_small(record_property):
    globals()["kept_in_child"] = open(os.environ["FAKE_DEVICE"])
    record_property("pid", os.getpid())
    open("pids", "a").write(f"{os.getpid()} {os.getppid()} {os.environ['NEURON_RT_VISIBLE_CORES']}")

@pytest.mark.tp(32)
def test_large(neuron_cores):
    assert neuron_cores.env["NEURON_RT_VISIBLE_CORES"] == "0-31"
    assert os.environ["NEURON_RT_VISIBLE_CORES"] == "0-31", "what it starts, as build_module does, has the test's cores"
    open("pids", "a").write(f" {os.getpid()}")

def test_unmarked():
    assert os.environ["NEURON_RT_VISIBLE_CORES"] == "0"
"""


JOB = """
@pytest.mark.tp(1)
def test_job(tp_group):
    open("pids", "a").write(f" {os.getppid()}")  # called in a child as well
"""


@pytest.mark.parametrize(("beside", "chosen"), [("", ""), (JOB, "not tp32")], ids=["larger_ones", "jobs"])
def test_a_small_test_gives_its_core_back_for(
    project: Project, monkeypatch: pytest.MonkeyPatch, beside: str, chosen: str
) -> None:
    project.fake_neuron(monkeypatch, cores=32)
    project.tests(MIXED + beside)
    project.run_apart("-p", "fake_neuron", "--neuron-wait", "30", "-k", chosen).assert_outcomes(
        passed=3, deselected=int(bool(chosen))
    )
    child, parent, core, worker = (project.path / "pids").read_text().split()
    assert (parent, core) == (worker, "0") and child != worker


@pytest.mark.parametrize(
    ("test", "text"),
    [
        (
            "@pytest.mark.tp(1)\ndef test_z(opened): pass",
            "test_it.py::test_z[tp1] opened a NeuronCore in the process that runs tests, which keeps it until the "
            "process ends, so that larger tests would wait for ever: open it in the test's own body, or in tp_group",
        ),
        (
            "def test_z(opened): pass",
            "test_it.py::test_z opened a NeuronCore that it did not ask for: mark it, for example @pytest.mark.tp(1).",
        ),
    ],
)
def test_a_device_opened_where_it_must_not_be_stops_the_run(
    project: Project, monkeypatch: pytest.MonkeyPatch, test: str, text: str
) -> None:
    project.fake_neuron(monkeypatch, cores=32)
    project.tests(MIXED + test + "\ndef test_never(): pass")
    result = project.run_apart("-p", "fake_neuron", "--neuron-wait", "30")
    result.assert_outcomes(passed=4)
    assert text in said(result) and result.ret == pytest.ExitCode.TESTS_FAILED


@pytest.mark.parametrize(
    ("options", "environment", "text"),
    [
        (["-n", "3"], {}, "-n asks for 3 workers, one per NeuronCore, but there are 2: -n 2."),
        (["--neuron-cores", "8"], {}, "--neuron-cores is 8, but this machine has 2 NeuronCores to use: leave it out,"),
        ([], {"XLA_USE_BF16": "1"}, "XLA_USE_BF16 is '1', which turns every float32 tensor into bfloat16 behind"),
        (["-k", "tp8"], {}, "test_a[tp8] needs 8 cores in a row, but the pool has 2 NeuronCores: leave it out with -k"),
        (["-k", "tp4"], {}, "test_a[tp4]: tp degree 4 does not exist on Trn1; 1, 2, 8 and 32 NeuronCores work togeth"),
    ],
)
def test_what_neuron_does_not_allow(
    project: Project, monkeypatch: pytest.MonkeyPatch, options: list[str], environment: dict[str, str], text: str
) -> None:
    project.fake_neuron(monkeypatch, cores=2)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    project.tests("@pytest.mark.tp(1, 4, 8)\ndef test_a(): open('ran', 'w')")
    result = project.run_apart("-p", "fake_neuron", *options)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    [line] = [line for line in result.errlines if line]
    assert line.startswith("ERROR: ") and text in line
    assert not (project.path / "ran").exists()


def test_a_worker_without_a_core_of_its_own_refuses_to_run(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.fake_neuron(monkeypatch, cores=2)
    project.tests("@pytest.mark.tp(1)\ndef test_a(): open('ran', 'w')")
    project.locks.mkdir()
    with (project.locks / "home-1").open("w") as place:
        fcntl.flock(place, fcntl.LOCK_EX)  # as another run's worker does
        result = project.run_apart("-p", "fake_neuron", "-n", "2")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    [line] = [line for line in result.errlines if line]
    end = "belongs to a process that runs tests: end other runs, or use fewer workers with -n."
    assert line == f"ERROR: each of the cores 0-1 {end}"
    assert not (project.path / "ran").exists()
