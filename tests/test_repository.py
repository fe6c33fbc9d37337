"""The repository's own rules: files stay short, what is public is described, and devices get what they can run."""

from __future__ import annotations

import ast

from sources import ROOT, Source, broken

MAX_LINES = 300


def unfit(text: str) -> list[str]:
    """What keeps a file from being short and saying what it is for."""
    lines = text.splitlines()
    long = [f"{len(lines)} lines: split it"] if len(lines) > MAX_LINES else []
    return long + (["no docstring"] if lines and not ast.get_docstring(ast.parse(text)) else [])


def test_a_module_is_short_and_says_what_it_is_for() -> None:
    assert broken(lambda source: unfit(source.text)) == {}


def test_a_file_of_tests_is_short_and_says_what_it_is_for() -> None:
    found = {path.name: unfit(path.read_text()) for path in (ROOT / "tests").rglob("*.py")}
    assert {name: mistakes for name, mistakes in found.items() if mistakes} == {}


def test_a_long_file_and_a_missing_purpose_would_be_found() -> None:
    assert unfit('"""Short."""\n' + "x = 1\n" * (MAX_LINES - 1)) == unfit("") == []
    assert unfit("x = 1\n" * (MAX_LINES + 1)) == ["301 lines: split it", "no docstring"]


def undocumented(source: Source) -> list[str]:
    """Public functions, classes and methods without a docstring."""
    found = []

    def visit(tree: ast.Module | ast.ClassDef, prefix: str) -> None:
        for node in tree.body:
            if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name.startswith("_"):
                continue
            if not ast.get_docstring(node):
                found.append(prefix + node.name)
            if isinstance(node, ast.ClassDef):
                visit(node, f"{prefix}{node.name}.")

    visit(ast.parse(source.text), "")
    return found


def test_everything_public_has_a_docstring() -> None:
    assert broken(undocumented) == {}


def test_a_missing_docstring_would_be_found() -> None:
    text = 'def f(): pass\nclass C:\n    "Doc."\n    def m(self): pass\n    def _p(self): pass\ndef _g(): pass'
    assert undocumented(Source("x", text)) == ["f", "C.m"]


def tensor_splits(text: str) -> list[str]:
    """Calls that torch lowers to aten::split."""
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    names = {"split", "chunk", "split_with_sizes"}
    return [ast.unparse(node) for node in calls if isinstance(node.func, ast.Attribute) and node.func.attr in names]


def test_no_sharded_module_splits_a_tensor() -> None:
    """torch-xla without functionalisation has split wrongly along dimension 1 (pytorch/xla#8640): take slices."""
    assert broken(lambda source: tensor_splits(source.text) if ".modules." in source.name else []) == {}


def test_a_split_would_be_found() -> None:
    text = "a = torch.split(x, 2)\nb, c = x.chunk(2, dim=-1)\nd = x[:2]\ne = x.split_with_sizes([1])"
    assert len(tensor_splits(text)) == 3


def broadcasts(text: str) -> list[str]:
    """Calls of a broadcast."""
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    names = {"broadcast", "broadcast_", "collective_broadcast"}
    return [ast.unparse(node) for node in calls if isinstance(node.func, ast.Attribute) and node.func.attr in names]


def test_nothing_that_runs_on_a_device_broadcasts() -> None:
    """torch-neuronx 2.7 to 2.9 gave zeros on rank 1 (aws-neuron-sdk#1240): gather, and take the source's part."""

    def on_device(name: str) -> bool:
        return ".modules." in name or name.startswith(("xla", "nxd"))

    assert broken(lambda source: broadcasts(source.text) if on_device(source.name) else []) == {}


def test_a_broadcast_would_be_found() -> None:
    assert len(broadcasts("xm.collective_broadcast([x])\ny = self.group.broadcast(x, 0)")) == 2
