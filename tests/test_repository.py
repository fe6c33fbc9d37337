"""The repository's own rules: imports run one way, files stay short, what is public is described."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {"tp_harness": "", "kernels": "kernels", "launch": "launch", "reference": "reference"}
MAX_LINES = 300

# A room imports only from rooms to its left; within a room no modules import each other in a circle.
ROOMS = (
    "errors version text_table launch config checkpoint neuron system results parallel placements arithmetic case "
    "faults reference kernels models modules ranks xla backends trn1 prepare judge report diagnosis verification "
    "regression mutation doctor commands cli __main__ nxd pytest_plugin testing launch.tp_test"
)
TORCH_FREE = (
    "config neuron results regression doctor commands errors version cli report "
    "judge.verdict judge.schedule_checks system.core_pool system.core_packing mutation.checks_page "
    "launch.tp_test pytest_plugin.plugin pytest_plugin.roles pytest_plugin.result_collector "
    "pytest_plugin.worker pytest_plugin.core_holder verification.agreement verification.hosts"
)
MOST_FILES = 24  # in a room
MOST_BESIDE = 8  # modules beside the rooms


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


def room(module: str) -> str:
    """The entry of ROOMS that a module belongs to."""
    return module if module in ROOMS.split() else module.partition(".")[0]


def backward_imports(source: Source) -> list[str]:
    """What it imports from rooms to the right of its own."""
    order = ROOMS.split()
    at = order.index(room(source.name))
    return sorted(name for name in own(source.imports()) if order.index(room(name)) > at)


def torch_at_start(name: str) -> bool:
    """Whether importing this module imports torch, itself or through another module of the product."""
    seen, pending = {name, ""}, [name, ""]
    while pending:
        imports = SOURCES[pending.pop()].imports(at_start=True)
        if {imported.split(".")[0] for imported in imports} & {"torch", "safetensors", "numpy"}:
            return True
        new = own(imports) - seen
        seen |= new
        pending += new
    return False


MODULES = [name for name in SOURCES if name]


def test_every_module_has_its_room() -> None:
    assert {room(name) for name in MODULES} == set(ROOMS.split()), "add new rooms to ROOMS, take removed ones out"
    assert len(ROOMS.split()) == len(set(ROOMS.split()))


def test_rooms_are_small_and_few_modules_stand_beside_them() -> None:
    folders = Counter(path.parent for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
    assert {str(folder.relative_to(ROOT)): n for folder, n in folders.items() if n > MOST_FILES} == {}
    assert folders[ROOT / "tp_harness"] <= MOST_BESIDE + 1, "and __init__.py: put the new module into a room"


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_only_from_its_left(name: str) -> None:
    assert backward_imports(SOURCES[name]) == [], f"{name} imports from its right in ROOMS: move code, not the order"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("from .cli import main", ["cli"]),
        ("from . import cli, errors", ["cli"]),
        ("import tp_harness.judge.judge", ["judge.judge"]),
        ("def f():\n    from .backends.gloo import GlooBackend", ["backends.gloo"]),
        ("if TYPE_CHECKING:\n    from tp_harness.case.case import Case", ["case.case"]),
        ("from .errors import UsageError\nimport torch", []),
    ],
    ids=["from", "from_package", "absolute", "in_function", "for_typing", "allowed"],
)
def test_a_backward_import_would_be_found(text: str, found: list[str]) -> None:
    assert backward_imports(Source("text_table", text)) == found
    assert backward_imports(Source("config.model", text.replace("from .", "from .."))) == found


def test_no_two_modules_import_each_other() -> None:
    graph = {name: own(source.imports()) - {name} for name, source in SOURCES.items()}
    list(TopologicalSorter(graph).static_order())
    with pytest.raises(CycleError):
        list(TopologicalSorter(graph | {"errors": {"cli"}}).static_order())


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("reference")])
def test_the_reference_knows_nothing_of_what_it_judges(name: str) -> None:
    assert {module for module in own(SOURCES[name].imports()) if not module.startswith("reference")} == set()
    tree = ast.parse(SOURCES[name].text)
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)} | SOURCES[name].imports()
    assert not {word for word in used if "distributed" in word}


@pytest.mark.parametrize(
    "name", [name for name in MODULES if {name, name.partition(".")[0]} & {"trn1", *TORCH_FREE.split()}]
)
def test_importing_a_torch_free_module_imports_no_torch(name: str) -> None:
    assert not torch_at_start(name), f"{name} must be usable without torch: import it inside the function that needs it"


@pytest.mark.parametrize("name", ["checkpoint.checkpoint", "placements", "verification.degrees", "ranks.job"])
def test_the_search_for_torch_finds_it(name: str) -> None:
    assert torch_at_start(name)  # job only through others


def unfit(text: str) -> list[str]:
    """What keeps a file from being short and saying what it is for."""
    lines = text.splitlines()
    long = [f"{len(lines)} lines: split it"] if len(lines) > MAX_LINES else []
    return long + (["no docstring"] if lines and not ast.get_docstring(ast.parse(text)) else [])


@pytest.mark.parametrize("name", SOURCES)
def test_a_module_is_short_and_says_what_it_is_for(name: str) -> None:
    assert unfit(SOURCES[name].text) == []


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


@pytest.mark.parametrize("name", SOURCES)
def test_everything_public_has_a_docstring(name: str) -> None:
    assert undocumented(SOURCES[name]) == []


def test_a_missing_docstring_would_be_found() -> None:
    text = 'def f(): pass\nclass C:\n    "Doc."\n    def m(self): pass\n    def _p(self): pass\ndef _g(): pass'
    assert undocumented(Source("x", text)) == ["f", "C.m"]


def tensor_splits(text: str) -> list[str]:
    """Calls that torch lowers to aten::split."""
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    names = {"split", "chunk", "split_with_sizes"}
    return [ast.unparse(node) for node in calls if isinstance(node.func, ast.Attribute) and node.func.attr in names]


@pytest.mark.parametrize("name", [name for name in MODULES if ".modules." in name])
def test_no_sharded_module_splits_a_tensor(name: str) -> None:
    """torch-xla without functionalisation has split wrongly along dimension 1 (pytorch/xla#8640): take slices."""
    assert tensor_splits(SOURCES[name].text) == []


def test_a_split_would_be_found() -> None:
    text = "a = torch.split(x, 2)\nb, c = x.chunk(2, dim=-1)\nd = x[:2]\ne = x.split_with_sizes([1])"
    assert len(tensor_splits(text)) == 3


def broadcasts(text: str) -> list[str]:
    """Calls of a broadcast."""
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    names = {"broadcast", "broadcast_", "collective_broadcast"}
    return [ast.unparse(node) for node in calls if isinstance(node.func, ast.Attribute) and node.func.attr in names]


@pytest.mark.parametrize("name", [name for name in MODULES if ".modules." in name or name.startswith(("xla", "nxd"))])
def test_nothing_that_runs_on_a_device_broadcasts(name: str) -> None:
    """torch-neuronx 2.7 to 2.9 gave zeros on rank 1 (aws-neuron-sdk#1240): gather, and take the source's part."""
    assert broadcasts(SOURCES[name].text) == []


def test_a_broadcast_would_be_found() -> None:
    assert len(broadcasts("xm.collective_broadcast([x])\ny = self.group.broadcast(x, 0)")) == 2


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
    found = {path.name: timed_by_hypothesis(path.read_text()) for path in (ROOT / "tests").rglob("*.py")}
    assert {name: tests for name, tests in found.items() if tests} == {}


def test_a_deadline_would_be_found() -> None:
    text = "S = settings(deadline=None)\n@given(x)\n@S\ndef a(): pass\n@given(x)\ndef b(): pass\n"
    text += "@settings(deadline=None)\n@given(x)\ndef c(): pass\n@settings(max_examples=3)\n@given(x)\ndef d(): pass\n"
    assert timed_by_hypothesis(text) == ["b", "d"]
