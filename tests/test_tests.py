"""The rules of the tests themselves: where they are, what they import, and that none fails because it took long."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

from units import unit

TESTS = Path(__file__).parent
BESIDE_ROOMS = {"kernels", "launch", "reference", "bench", "support", "recorded", "report_runs"}


def folders_of_no_room(folders: Iterable[str]) -> set[str]:
    """Folders of tests that are called like no folder of tp_harness and are none of those beside."""
    return {name for name in folders if not (TESTS.parent / "tp_harness" / name).is_dir()} - BESIDE_ROOMS


def test_every_folder_of_tests_is_called_like_a_room() -> None:
    """Mend it by moving the tests to those of the room that they try."""
    found = {path.name for path in TESTS.iterdir() if path.is_dir()} - {"__pycache__"}
    assert found > BESIDE_ROOMS
    assert folders_of_no_room(found) == set()


def test_a_folder_of_no_room_would_be_found() -> None:
    assert folders_of_no_room(["judge", "support", "judges", "models"]) == {"judges"}


def imported_tests(text: str) -> set[str]:
    """Files of tests that this one imports; test_utils is a helper by a name that users know."""
    nodes = list(ast.walk(ast.parse(text)))
    names = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    names |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return {name for name in names if name.rpartition(".")[2].startswith("test_")} - {"test_utils"}


def test_no_file_of_tests_imports_another() -> None:
    """Mend it by moving what both need to tests/support."""
    found = {path.name: imported_tests(path.read_text()) for path in TESTS.rglob("*.py")}
    assert {name: imported for name, imported in found.items() if imported} == {}


def test_an_import_of_tests_would_be_found() -> None:
    text = (
        "from test_a import x\nimport test_b, os\ndef f():\n    from .judge.test_c import y\nfrom test_utils import z"
    )
    assert imported_tests(text) == {"test_a", "test_b", "judge.test_c"}


def timed_by_hypothesis(text: str) -> list[str]:
    """Tests with @given that hypothesis would fail where the machine stalls for its deadline, a fifth of a second."""
    tree = ast.parse(text)
    shared = {
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign) and "deadline=None" in ast.unparse(node.value)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    tests = {node.name: [ast.unparse(each) for each in node.decorator_list] for node in _functions(tree)}
    given = {name: lines for name, lines in tests.items() if any(line.startswith("given(") for line in lines)}
    return [name for name, lines in given.items() if not any("deadline=None" in d or d in shared for d in lines)]


def _functions(tree: ast.AST) -> Iterator[ast.FunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def test_no_test_fails_because_an_example_took_long() -> None:
    """Mend it with @settings(deadline=None)."""
    found = {path.name: timed_by_hypothesis(path.read_text()) for path in TESTS.rglob("*.py")}
    assert {name: tests for name, tests in found.items() if tests} == {}


def test_a_deadline_would_be_found() -> None:
    text = "S = settings(deadline=None)\n@given(x)\n@S\ndef a(): pass\n@given(x)\ndef b(): pass\n"
    text += "@settings(deadline=None)\n@given(x)\ndef c(): pass\n@settings(max_examples=3)\n@given(x)\ndef d(): pass\n"
    assert timed_by_hypothesis(text) == ["b", "d"]


def test_tests_that_share_a_fixture_go_to_one_worker(tmp_path: Path) -> None:
    """Else each worker makes it again, which takes long and fails no test."""
    shared = '@pytest.fixture(params=[1], scope="module")\ndef runs(): ...\n'
    for name, text in {"shared.py": shared, "own.py": "@pytest.fixture\ndef run(): ...\n"}.items():
        (tmp_path / name).write_text(text)
    assert unit(tmp_path, "shared.py::test_a[x::y]") == unit(tmp_path, "shared.py::test_b") == "shared.py"
    assert unit(tmp_path, "own.py::test_a[x::y]") == "own.py::test_a[x::y]"
    files = [path.relative_to(TESTS).as_posix() for path in TESTS.rglob("test_*.py")]
    whole = {file for file in files if unit(TESTS, f"{file}::test") == file}
    assert {"arithmetic/test_collectives.py", "case/test_mistakes.py", "parallel/test_dtensors.py"} <= whole
    assert len(whole) < len(files) / 2, "the others are dealt out one by one"
