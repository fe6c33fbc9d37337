"""Texts that we write for people are read by people: what decides something is a field beside them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = ("metric", "reason", "detail", "message", "sentence")  # fields that hold a text of ours
TAKEN_APART = (
    *("startswith", "endswith", "partition", "rpartition", "split", "rsplit", "splitlines"),
    *("find", "index", "count", "removeprefix", "removesuffix"),
)


def parsed(source: str) -> Iterator[str]:
    """Every expression that takes a text of ours apart, or searches it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare) and any(isinstance(op, (ast.In, ast.NotIn)) for op in node.ops):
            yield from (ast.unparse(node) for right in node.comparators if _of_ours(right))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            of_regex = isinstance(node.func.value, ast.Name) and node.func.value.id == "re"
            read = node.args if of_regex else [node.func.value] if node.func.attr in TAKEN_APART else []
            yield from (ast.unparse(node) for each in read if _of_ours(each))


def _of_ours(node: ast.expr) -> bool:
    return isinstance(node, ast.Attribute) and node.attr in OURS


@pytest.mark.parametrize("folder", ["tp_harness", "launch", "kernels"])
def test_no_text_of_ours_is_read(folder: str) -> None:
    found = {
        f"{path.relative_to(ROOT)}: {text}"
        for path in sorted((ROOT / folder).rglob("*.py"))
        for text in parsed(path.read_text(encoding="utf-8"))
    }
    assert not found, f"give what is read here a field of its own: {found}"


@pytest.mark.parametrize(
    "source",
    ["gate.metric.partition(' of ')", "'no group' in result.reason", "re.search('rank', outcome.message)"],
)
def test_reading_one_is_found(source: str) -> None:
    assert list(parsed(source)) == [source]
    assert list(parsed("error.text.split(); result.reason == other.reason")) == []
