"""What a test and its fixtures set in the environment reaches the ranks that the test starts, and bodies in a child."""

from __future__ import annotations

import pytest
from inner_pytest import Project, said
from neighbours import CASE, NEIGHBOUR

pytest_plugins = ("pytester",)

TESTS = """
@pytest.fixture
def bug(monkeypatch):
    monkeypatch.setenv("BUG", "of the fixture")

def seen(tp_group, **given):
    return set(tp_group.run("show.py", **given).output.split(";")) - {""}

@pytest.mark.tp(2)
def test_set_in_the_test(tp_group, monkeypatch):
    assert seen(tp_group) == {"-"}
    monkeypatch.setenv("BUG", "of the test")
    assert seen(tp_group) == {"of the test"} and tp_group.env["BUG"] == "of the test"
    assert seen(tp_group, env={"BUG": "of the call"}) == {"of the call"}
    assert seen(tp_group, env={"BUG": None}) == {"-"}

@pytest.mark.tp(2)
def test_set_in_a_fixture(tp_group, neuron_cores, bug):
    assert seen(tp_group) == {"of the fixture"} and neuron_cores.env["BUG"] == "of the fixture"

@pytest.mark.tp(1)
def test_in_a_child(bug, neuron_cores):
    assert os.environ["BUG"] == "of the fixture"
    assert os.environ["NEURON_RT_VISIBLE_CORES"] == str(neuron_cores)

@pytest.mark.tp(2)
def test_taken_out_in_the_test(tp_group, monkeypatch):
    monkeypatch.delenv("OUTER")
    assert "OUTER" not in tp_group.env

@pytest.mark.tp(2)
def test_the_cores_stay_the_tests_own(tp_group, monkeypatch):
    monkeypatch.setenv("NEURON_RT_VISIBLE_CORES", "30-31")
    assert tp_group.env["NEURON_RT_VISIBLE_CORES"] == str(tp_group.cores) != "30-31"
    with pytest.raises(ValueError, match="^env has NEURON_RT_VISIBLE_CORES, which the cores of this test decide .*"):
        tp_group.run("show.py", env={"NEURON_RT_VISIBLE_CORES": "30-31"})

@pytest.mark.tp(2)
@pytest.mark.parametrize("way", ["", "monkeypatch", "env"])
def test_verify(tp_group, monkeypatch, way):
    if way == "monkeypatch":
        monkeypatch.setenv("BUG", "1")
    env = {"BUG": "1"} if way == "env" else None
    options = ("--case", "own_case.py:CASE", "--dtype", "float32", "--draws", "1")
    if not way:
        tp_group.verify(*options, env=env)
        return
    with pytest.raises(AssertionError, match="own float32 MISMATCH"):
        tp_group.verify(*options, env=env)
"""


@pytest.fixture
def project(pytester: pytest.Pytester) -> Project:
    return Project(pytester)


def test_the_environment_of_a_test_reaches_what_it_starts(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTER", "1")
    project.tests(TESTS)
    (project.path / "show.py").write_text('import os; os.write(1, (os.environ.get("BUG", "-") + ";").encode())')
    (project.path / "own_neighbour.py").write_text(NEIGHBOUR)
    (project.path / "own_case.py").write_text(CASE.format(neighbour="own_neighbour"))
    result = project.run_apart("--neuron-fork")
    result.assert_outcomes(passed=8), said(result)
