"""docs/trn1.md: every guard that its table names has the test that it names."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
WITHOUT_TEST = "none: it needs a device"


def guards() -> list[tuple[str, str]]:
    """(trap, test) of every row of the table of traps."""
    text = (ROOT / "docs" / "trn1.md").read_text().split("| trap | guard | test |")[1].split("\n\n")[0]
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return [(row[0], row[2]) for row in rows]


def exists(reference: str) -> bool:
    """Whether `file: name` names a test."""
    file, _, name = reference.partition(": ")
    path = next((ROOT / "tests").rglob(f"{file}.py"), None)
    tree = ast.parse(path.read_text()) if path else ast.Module(body=[], type_ignores=[])
    return f"test_{name}" in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_every_guard_has_the_test_that_is_named() -> None:
    table = guards()
    assert len(table) > 20
    assert [(trap, test) for trap, test in table if test != WITHOUT_TEST and not exists(test)] == []


def test_a_name_that_is_no_test_would_be_found() -> None:
    assert not exists("test_neuron_environment: nothing_of_the_kind")
    assert not exists("test_nowhere: it_is_computed_without_torch")
