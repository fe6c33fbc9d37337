"""Which environment the ranks see: this process's own when they are asked for, with the changes that a call makes."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest
import torch
from neighbours import CASE, NEIGHBOUR
from torch import nn

from tp_harness import build_module, verify
from tp_harness.config.options import Options
from tp_harness.errors import UsageError
from tp_harness.results.result import Status
from tp_harness.system.environment import changed, changed_here


@pytest.fixture(params=["beside", "package"])
def options(tmp_path: Path, request: pytest.FixtureRequest) -> Options:
    """A run of the case, whose file has its neighbour beside it or is in a package with it."""
    folder = tmp_path / ("own_package" if request.param == "package" else "")
    folder.mkdir(exist_ok=True)
    if request.param == "package":
        (folder / "__init__.py").touch()
    (folder / "own_neighbour.py").write_text(NEIGHBOUR)
    (folder / "own_case.py").write_text(
        CASE.format(neighbour=".own_neighbour" if request.param == "package" else "own_neighbour")
    )
    spec = f"{folder / 'own_case.py'}:CASE"
    return Options(case=spec, degrees=(2,), dtypes=("float32",), draws=1, fault_control=False, out=tmp_path / "out")


def statuses(options: Options, **given: dict[str, str | None]) -> set[Status]:
    return {result.status for result in verify(options, **given).results}


def test_a_verification_sees_the_environment_of_its_call(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    assert statuses(options) == {Status.PASS}
    monkeypatch.setenv("BUG", "1")
    assert statuses(options) == {Status.MISMATCH}
    assert statuses(options, env={"BUG": None}) == {Status.PASS}
    monkeypatch.delenv("BUG")
    assert statuses(options, env={"BUG": "1"}) == {Status.MISMATCH}
    assert "BUG" not in os.environ
    assert statuses(options) == {Status.PASS}


def test_modules_that_were_imported_before_a_verification_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kept_neighbour.py").write_text(NEIGHBOUR)
    (tmp_path / "kept_case.py").write_text(CASE.format(neighbour="kept_neighbour"))
    monkeypatch.syspath_prepend(tmp_path)
    import kept_neighbour

    spec = f"{tmp_path / 'kept_case.py'}:CASE"
    run = Options(case=spec, degrees=(2,), dtypes=("float32",), draws=1, fault_control=False, out=tmp_path / "out")
    assert statuses(run, env={"BUG": "1"}) == {Status.MISMATCH}
    assert sys.modules["kept_neighbour"] is kept_neighbour and kept_neighbour.BUG is None
    assert "kept_case" not in sys.modules


class Telling(nn.Module):
    """Returns the number that the environment holds in this rank."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + int(os.environ.get("NUMBER", "0"))


def test_a_built_module_has_the_environment_in_which_it_was_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in ("3", "4"):
        monkeypatch.setenv("NUMBER", number)
        with build_module(Telling, [(torch.zeros(1),)], tp_degree=2, checkpoint_path=str(tmp_path / "x.pt")) as module:
            assert module(torch.zeros(1)).item() == int(number)


def test_changes_are_made_in_a_copy_or_for_a_while() -> None:
    before = {"KEPT": "a", "GONE": "b"}
    assert changed(before, {"GONE": None, "ABSENT": None, "NEW": ""}) == {"KEPT": "a", "NEW": ""}
    assert changed(before, None) == before == {"KEPT": "a", "GONE": "b"}
    there = dict(os.environ)
    with pytest.raises(ZeroDivisionError), changed_here({"TP_HARNESS_TRIAL": "1", "PATH": None}):
        assert os.environ["TP_HARNESS_TRIAL"] == "1" and "PATH" not in os.environ
        raise ZeroDivisionError
    assert dict(os.environ) == there


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"BUG": 1}, "env has BUG=1; text is needed, or None to take the variable out."),
        ({"BUG": "a\0b"}, "env has BUG='a\\x00b'; text is needed, or None to take the variable out."),
        ({"A=B": "1"}, "env has 'A=B'; the name of a variable is needed."),
        ({"": "1"}, "env has ''; the name of a variable is needed."),
        ({1: "1"}, "env has 1; the name of a variable is needed."),
    ],
)
def test_what_is_no_variable_is_refused(changes: dict[str, str], text: str) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(text)}$"):
        verify(env=changes)
