"""The pytest plugin without Neuron: marks, options, errors, reports, and how it gets on with pytest's own options."""

from __future__ import annotations

import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from threading import Thread

import pytest
from inner_pytest import FAST, Project, said

from tp_harness.pytest_plugin.marks import first_mistake
from tp_harness.pytest_plugin.settings import settings_of
from tp_harness.system.core_pool import CorePool

pytest_plugins = ("pytester",)
EXAMPLE = "for example @pytest.mark.tp(1, 2, 8, 32)."


@pytest.fixture
def project(pytester: pytest.Pytester) -> Project:
    return Project(pytester)


FIXTURES = """
@pytest.mark.tp(1, 2, 8, 32)
def test_block(neuron_cores, tp_degree, tp_group):
    assert neuron_cores.count == tp_degree == tp_group.degree == len(neuron_cores.cores)
    assert neuron_cores.first % tp_degree == 0
    env = neuron_cores.env
    assert env["NEURON_RT_VISIBLE_CORES"] == str(neuron_cores) == ("0" if tp_degree == 1 else f"0-{tp_degree - 1}")
    assert env["NEURON_RT_ROOT_COMM_ID"] == "127.0.0.1:62182"
    assert env["HOME"] == os.environ["HOME"] and "NEURON_RT_VISIBLE_CORES" not in os.environ
    assert tp_group.cores is neuron_cores and tp_group.env == env

DEGREES = (2, 8)

@pytest.mark.tp(DEGREES)
class TestClass:
    @pytest.mark.parametrize("dtype", ["bf16"])
    def test_without_fixtures(self, dtype):
        pass

def test_unmarked():
    pass
"""


def test_a_marked_test_runs_once_per_degree_on_cores_of_its_own(project: Project) -> None:
    project.tests(FIXTURES)
    result = project.run("-v")
    result.assert_outcomes(passed=7)
    for test in ("test_block[tp1]", "test_block[tp32]", "TestClass::test_without_fixtures[tp8-bf16]"):
        assert f"test_it.py::{test} PASSED" in said(result)
    assert project.statuses() == {("test_block", tp): "PASS" for tp in (1, 2, 8, 32)} | {
        ("TestClass::test_without_fixtures[bf16]", tp): "PASS" for tp in DEGREES
    }
    record = project.record()
    assert (record["schema"], record["finished"], record["exit_code"], record["backend"]) == (1, True, 0, "pytest")
    assert record["options"] == {"cores": "0-31", "pool": "virtual", "workers": 0}
    assert record["command"].startswith("pytest ") and record["command"].endswith(" -v")
    assert CorePool(project.locks, tuple(range(32))).free() == tuple(range(32))


DEGREES = (2, 8)


def test_the_table_and_junit(project: Project) -> None:
    project.tests("""
@pytest.mark.tp(1, 2)
def test_a(tp_degree):
    assert tp_degree == 1, "too <many> ranks\\x1b"

@pytest.mark.tp(8)
def test_b():
    raise KeyError("b")

@pytest.mark.tp(8)
@pytest.mark.skipif(True, reason="not <today>")
def test_c():
    pass
""")
    result = project.run()
    result.assert_outcomes(passed=1, failed=2, skipped=1)
    result.stdout.re_match_lines(
        [
            r"=+ tensor-parallel tests =+",
            r" +tp 1 +tp 2 +tp 8$",
            r"test_it.py::test_a  PASS \d+\.\d s  FAILED \d+\.\d s  -$",
            r"test_it.py::test_b  - +- +CRASH \d+\.\d s$",
            r"test_it.py::test_c  - +- +SKIPPED 0\.0 s$",
            r"1 PASS, 1 CRASH, 1 FAILED, 1 SKIPPED$",
            r"32 virtual cores: \d+\.\d core-seconds held within \d+\.\d s, ideal packing \d+\.\d s; longest wait ",
            r".*/artifacts/.*/run.json",
        ],
        consecutive=True,
    )
    assert project.record()["exit_code"] == 3
    [path] = project.path.glob("artifacts/*/junit.xml")
    cases = {case.attrib["name"]: case for case in ET.parse(path).getroot().iter("testcase")}
    assert list(cases) == [
        f"test_it.py::{name}" for name in ("test_a tp 1", "test_a tp 2", "test_b tp 8", "test_c tp 8")
    ]
    [failure] = cases["test_it.py::test_a tp 2"].iter("failure")
    assert (failure.attrib["type"], failure.attrib["message"]) == ("FAILED", "AssertionError: too <many> ranks\ufffd")
    [skip] = cases["test_it.py::test_c tp 8"].iter("skipped")
    assert skip.attrib["message"] == "not <today>"


MISTAKES = {
    "@pytest.mark.tp": f"test_it.py::test_a: @pytest.mark.tp needs degrees: {EXAMPLE}",
    "@pytest.mark.tp('8')": f"@pytest.mark.tp has '8' among its degrees; positive numbers are needed: {EXAMPLE}",
    "@pytest.mark.tp(1, 0)": "@pytest.mark.tp has 0 among its degrees; positive numbers",
    "@pytest.mark.tp(True)": "@pytest.mark.tp has True among its degrees",
    "@pytest.mark.tp(2, 8, 2)": "@pytest.mark.tp names a degree twice: 2, 8, 2.",
    "@pytest.mark.tp(degrees=8)": "@pytest.mark.tp takes degrees only, not degrees=: for example",
    "@pytest.mark.usefixtures('neuron_cores')": (
        f"::test_a uses neuron_cores without @pytest.mark.tp, so how many cores it needs is not known: {EXAMPLE}"
    ),
    "@pytest.mark.usefixtures('tp_group')": "test_a uses tp_group without @pytest.mark.tp, so how many cores",
    "@pytest.mark.tp(64)": (
        "test_it.py::test_a[tp64] needs 64 cores in a row, but the pool has 32 virtual cores: choose --neuron-cores "
        '64, or leave it out with -k "not tp64".'
    ),
}


def test_a_mark_that_cannot_be_has_its_sentence(project: Project) -> None:
    config = project.pytester.parseconfigure()
    for decorator, text in MISTAKES.items():
        project.tests(f"def test_first(): pass\n{decorator}\ndef test_a(): pass")
        items, _ = project.pytester.inline_genitems()
        mistake = first_mistake(items, settings_of(config))
        assert mistake and text in mistake and mistake.count("\n") == 0


def test_a_mistake_ends_the_run_before_any_test(project: Project) -> None:
    project.tests("def test_first(): open('ran', 'w')\n@pytest.mark.tp()\ndef test_a(): pass")
    result = project.run()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    said = f"ERROR: test_it.py::test_a: @pytest.mark.tp needs degrees: {EXAMPLE}"
    assert [line for line in result.errlines if line] == [said]
    assert not (project.path / "ran").exists()
    assert not (project.path / "artifacts").exists()


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("--neuron-cores=0", "ERROR: --neuron-cores is 0; a number between 1 and 1024 is needed."),
        ("--neuron-wait=-1", "ERROR: --neuron-wait is -1; a positive number of seconds is needed."),
        ("--neuron-wait=nan", "ERROR: --neuron-wait is nan; a positive number of seconds is needed."),
    ],
)
def test_a_wrong_option_is_one_sentence(project: Project, option: str, text: str) -> None:
    result = project.run(option)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert [line for line in result.errlines if line] == [text]


def test_a_workers_usage_error_is_the_controllers(project: Project) -> None:
    project.tests("def test_first(): open('ran', 'w')\n@pytest.mark.tp(16)\ndef test_a(): pass")
    result = project.run_apart("-n", "2", "--neuron-cores", "8")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    [line] = [line for line in result.errlines if line]
    assert line.startswith("ERROR: test_it.py::test_a[tp16] needs 16 cores in a row, but the pool has 8 virtual cores")
    assert not (project.path / "ran").exists()


def test_choosing_tests_chooses_what_must_fit(project: Project) -> None:
    project.tests("@pytest.mark.tp(1, 8, 32)\ndef test_a(): pass\n")
    project.run("--neuron-cores", "8", "-k", "not tp32").assert_outcomes(passed=2, deselected=1)
    listed = project.run("--neuron-cores", "8", "--collect-only", "-q")
    assert listed.ret == 0 and "test_it.py::test_a[tp32]" in said(listed)
    only = project.run("--collect-only", "-n", "2", "-q")
    assert only.ret == 0 and "test_it.py::test_a[tp8]" in said(only)
    assert len(list(project.path.glob("artifacts/*"))) == 1, "listing leaves no folder"


def test_a_fixture_asked_for_in_the_body_needs_the_mark_too(project: Project) -> None:
    project.tests("def test_a(request): request.getfixturevalue('neuron_cores')")
    result = project.run()
    result.assert_outcomes(failed=1)
    assert "test_a uses neuron_cores without @pytest.mark.tp, so how many cores it needs is not known" in said(result)


def test_x_and_lf(project: Project) -> None:
    project.pytester.makeini(f"[pytest]\naddopts = {FAST} --neuron-locks={project.locks}")
    project.tests("@pytest.mark.tp(1, 2, 8)\ndef test_a(tp_degree): assert tp_degree != 2\n")
    project.run("-x").assert_outcomes(passed=1, failed=1)
    assert CorePool(project.locks, tuple(range(32))).free() == tuple(range(32))
    again = project.run("--lf", "-v")
    again.assert_outcomes(failed=1)
    assert "test_a[tp2] FAILED" in said(again) and "test_a[tp8]" not in said(again)


def test_cores_that_stay_taken_fail_the_test_in_one_sentence(project: Project) -> None:
    project.tests("@pytest.mark.tp(1, 2)\ndef test_a(): pass\ndef test_b(): pass")
    taken = CorePool(project.locks, (0, 1))
    taken.acquire(2)
    result = project.run("--neuron-cores", "2", "--neuron-wait", "0.2", "-n0")
    result.assert_outcomes(errors=2, passed=1)
    assert "waited 0.2 s for 1 of the cores 0-1; held: 0 by process " in said(result)
    assert "End those processes, or wait longer with --neuron-wait." in said(result)
    assert project.statuses() == {("test_a", 1): "FAILED", ("test_a", 2): "FAILED"}
    taken.close()


def test_a_folder_that_cannot_be_made_loses_no_test(project: Project) -> None:
    project.tests(
        "@pytest.mark.tp(1, 2)\ndef test_a(): pass\n@pytest.mark.tp(8)\ndef test_b(tp_group): tp_group.run('x')"
    )
    (project.path / "file").touch()
    result = project.run("--tp-out", "file")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.re_match_lines([r"test_it.py::test_a  PASS \d\.\d s  PASS \d\.\d s  -$"])
    text = said(result)
    assert "run.json and junit.xml are not whole: " in text and ": Not a directory. Choose another folder with" in text
    assert "/logs: Not a directory; choose another with --tp-out." in text


def test_waiting_does_not_count_for_the_timeout(project: Project) -> None:
    project.tests("""
@pytest.mark.tp(1)
def test_a():
    left, _ = signal.getitimer(signal.ITIMER_REAL)
    with open("armed", "w") as file:
        file.write(str(time.monotonic() - (100 - left)))  # when the test's timeout began
""")
    taken = CorePool(project.locks, (0,))
    lease = taken.acquire(1)
    released: list[float] = []

    def release_when_waited_for() -> None:
        while not list(project.locks.glob("ticket-*")):
            time.sleep(0.02)
        time.sleep(0.2)
        released.append(time.monotonic())
        lease.release()

    thread = Thread(target=release_when_waited_for)
    thread.start()
    project.run("--neuron-cores", "1", "--timeout", "100").assert_outcomes(passed=1)
    thread.join()
    [result] = project.results()
    assert result.waited_s > 0.1
    assert float((project.path / "armed").read_text()) >= released[0] - 0.01
    taken.close()


def test_two_runs_of_one_machine_share_the_pool(project: Project) -> None:
    project.tests("""
@pytest.mark.tp(32)
def test_a():
    begin = time.monotonic()
    time.sleep(0.5)
    open(f"{os.getpid()}.stay", "w").write(f"{begin} {time.monotonic()}")
""")
    command = [sys.executable, "-m", "pytest", "-q"]
    runs = [subprocess.Popen(command, cwd=project.path, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [run.wait(60) for run in runs] == [0, 0]
    first, second = sorted([float(t) for t in p.read_text().split()] for p in project.path.glob("*.stay"))
    assert first[1] <= second[0]
    assert len(list(project.path.glob("artifacts/*/run.json"))) == 2


def test_a_project_without_marks_pays_and_sees_nothing(project: Project) -> None:
    project.tests("""
import sys

def test_a():
    ours = {name for name in sys.modules if name.startswith("tp_harness.")}
    plugin = {f"tp_harness.pytest_plugin{x}" for x in ("", ".plugin", ".roles", ".settings", ".marks", ".worker",
              ".report_properties", ".result_collector")}
    assert ours <= plugin | {"tp_harness.version", "tp_harness.errors"}
    assert not {"torch", "numpy", "rich", "ctypes"} & set(sys.modules)
""")
    result = project.run_apart("-q")
    result.assert_outcomes(passed=1)
    assert "tensor-parallel" not in said(result) and "tp-harness" not in said(result)
    assert not (project.path / "artifacts").exists() and not project.locks.exists()


def test_times_are_those_of_the_run(project: Project) -> None:
    project.tests("@pytest.mark.tp(1)\ndef test_a(): pass")
    begin = time.monotonic()
    project.run()
    [result] = project.results()
    assert 0 <= result.acquired_s <= result.released_s <= time.monotonic() - begin
