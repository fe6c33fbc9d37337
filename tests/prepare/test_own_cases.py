"""Which Cases --case names, in which order, and what their rows are called."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tp_harness.errors import UsageError
from tp_harness.prepare import own_cases as subject
from tp_harness.prepare.own_cases import log_suffix, own_cases

HEAD = """
from torch import nn
from tp_harness import Case
def case(name, **fields):
    return Case(name=name, reference=nn.Identity, sharded=nn.Identity, inputs=lambda g: (), **fields)
"""


@pytest.fixture(autouse=True)
def as_new() -> Iterator[None]:
    """What files of Cases leave in the process goes with the test."""
    path, modules, folders = list(sys.path), dict(sys.modules), set(subject._FOLDERS)
    yield
    sys.path[:] = path
    sys.modules.clear()
    sys.modules.update(modules)
    subject._FOLDERS.clear()
    subject._FOLDERS.update(folders)


def write(path: Path, body: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(HEAD + body)
    return str(path)


def named(*specs: str) -> list[tuple[str, str, int]]:
    return [(own.spec.rpartition("/")[2], own.label, own.layer) for own in own_cases(specs)]


def refusal(*specs: str) -> str:
    with pytest.raises(UsageError) as caught:
        own_cases(specs)
    return str(caught.value)


def test_a_file_stands_for_all_of_its_cases_in_its_order(tmp_path: Path) -> None:
    file = write(
        tmp_path / "all.py", "Z, A = case('z'), case('a', layer=3)\n_BASE = case('base')\nAGAIN = Z\nM = case('m')"
    )
    assert named(file) == [("all.py:Z", "z", 0), ("all.py:A", "a", 3), ("all.py:M", "m", 0)]
    assert named(f"{file}:M", f"{file}:_BASE") == [("all.py:M", "m", 0), ("all.py:_BASE", "base", 0)]


def test_cases_of_one_name_are_told_apart(tmp_path: Path) -> None:
    one = write(tmp_path / "one.py", "A, B, C = case('x'), case('x'), case('x', layer=1)")
    assert [label for _, label, _ in named(one)] == ["x (A)", "x (B)", "x"], "a layer tells apart too"
    two = write(tmp_path / "two.py", "A = case('x')")
    assert [label for _, label, _ in named(f"{one}:A", two)] == [f"x ({one}:A)", f"x ({two}:A)"]


def test_files_and_names_may_be_mixed(tmp_path: Path) -> None:
    one, two = write(tmp_path / "one.py", "A, B = case('a'), case('b')"), write(tmp_path / "two.py", "C = case('c')")
    assert [spec for spec, _, _ in named(f"{one}:B", two, f"{one}:A")] == ["one.py:B", "two.py:C", "one.py:A"]


def test_what_cannot_be_is_one_sentence(tmp_path: Path) -> None:
    none = write(tmp_path / "none.py", "_X = case('x')")
    assert refusal(none) == f"{none} defines no Case; a tp_harness.Case at the top level of the file is needed."
    one = write(tmp_path / "one.py", "A = case('a')")
    assert refusal(one, f"{one}:A") == f"--case names {one}:A twice; leave one out."
    assert refusal("one:A").startswith("--case is 'one:A'; it takes FILE.py, for all Cases of a file, or FILE.py:NAME")
    assert refusal(f"{one}:").startswith(f"--case is '{one}:'; it takes FILE.py")
    assert refusal("absent.py") == "--case names the file absent.py, which does not exist."


def test_a_neighbour_of_the_same_name_in_another_folder_is_not_taken_for_it(tmp_path: Path) -> None:
    a, b = (
        write(tmp_path / folder / f"{folder}.py", "import helper_of_cases\nC = case(helper_of_cases.NAME)")
        for folder in "ab"
    )
    for folder in "ab":
        (tmp_path / folder / "helper_of_cases.py").write_text(f"NAME = 'of {folder}'")
    assert [label for _, label, _ in named(a)] == ["of a"]
    beside, imported = (tmp_path / folder / "helper_of_cases.py" for folder in "ba")
    assert refusal(b) == f"{b} may import {beside}, but {imported} was imported before it: run these files apart."


def test_a_file_of_a_package_of_the_same_name_is_not_taken_for_another(tmp_path: Path) -> None:
    a, b = (write(tmp_path / folder / "samename" / "cases.py", f"C = case('{folder}')") for folder in "ab")
    for folder in "ab":
        (tmp_path / folder / "samename" / "__init__.py").touch()
    assert [label for _, label, _ in named(a)] == ["a"]
    assert re.fullmatch(rf"{b}: another module of this name, {a}, was imported before it; run them apart", refusal(b))


def test_logs_of_several_cases_are_kept_apart() -> None:
    assert log_suffix(["a.py:A"], "a.py:A") == ""
    specs = ["a.py:A", "a.py:B", "b.py:B"]
    assert [log_suffix(specs, spec) for spec in specs] == ["-A", "-B-1", "-B-2"]
