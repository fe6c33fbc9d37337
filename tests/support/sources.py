"""The product's modules as texts, and what each imports."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = {"tp_harness": "", "kernels": "kernels", "launch": "launch", "reference": "reference"}


@dataclass(frozen=True)
class Source:
    """A module of the product: its name below tp_harness, and its text."""

    name: str
    text: str
    is_package: bool = False

    def imports(self, *, at_start: bool = False) -> set[str]:
        """All that it imports, as `tp_harness.x` or `torch`; with at_start, only what importing it runs."""
        found: set[str] = set()
        for node in _nodes(ast.parse(self.text), at_start):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                module = self._absolute(node)
                found |= {f"{module}.{alias.name}" for alias in node.names}
        return found

    def _absolute(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        parts = ["tp_harness", *self.name.split(".")] if self.name else ["tp_harness"]
        parts = parts[: len(parts) - node.level + self.is_package]
        return ".".join([*parts, *([node.module] if node.module else [])])


def _nodes(tree: ast.AST, at_start: bool) -> Iterator[ast.AST]:
    """Every node; with at_start, none inside a function or under `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        lazy = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        typing = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if not (at_start and (lazy or typing)):
            yield node
            yield from _nodes(node, at_start)


def sources() -> dict[str, Source]:
    """Every module of the product by name below tp_harness ("" is its __init__)."""
    found = {}
    for folder, prefix in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            parts = tuple(part for part in (prefix, *parts) if part not in ("", "__init__"))
            found[".".join(parts)] = Source(".".join(parts), path.read_text(), path.name == "__init__.py")
    return found


SOURCES = sources()


def own(imports: set[str], names: Mapping[str, Source] = SOURCES) -> set[str]:
    """The product's modules among imports: the longest name that is a module."""
    found = set()
    for name in imports:
        parts = name.split(".")
        if parts[0] == "tp_harness":
            below = [".".join(parts[1:length]) for length in range(len(parts), 1, -1)]
            found.add(next((module for module in below if module in names), ""))
    return found - {""}


MODULES = [name for name in SOURCES if name]


def broken(rule: Callable[[Source], list[str]]) -> dict[str, list[str]]:
    """What a rule finds wrong, by module; none at all would mean that there is nothing to hold to it."""
    assert len(SOURCES) > 200
    return {name: found for name, source in SOURCES.items() if (found := rule(source))}
