"""The rooms: imports run one way, few modules stand in each, and what must be usable without torch is."""

from __future__ import annotations

import ast
from collections import Counter
from graphlib import CycleError, TopologicalSorter

import pytest
from sources import FOLDERS, MODULES, ROOT, SOURCES, Source, broken, own

# A room imports only from rooms to its left; within a room no modules import each other in a circle.
ROOMS = (
    "errors version text_table libraries launch models config checkpoint neuron system results parallel placements "
    "arithmetic case faults reference kernels ranks xla backends trn1 prepare judge report diagnosis models.gpt_oss "
    "modules verification regression mutation doctor commands cli __main__ nxd pytest_plugin testing"
)
TORCH_FREE = (
    "models.family models.gpt_oss models.gpt_oss.cost models.gpt_oss.config.huggingface config neuron results "
    "regression doctor commands errors version cli report "
    "judge.verdict judge.schedule_checks system.core_pool system.core_packing mutation.checks_page "
    "pytest_plugin.plugin pytest_plugin.roles pytest_plugin.result_collector "
    "pytest_plugin.worker pytest_plugin.core_holder verification.agreement verification.hosts"
)
MOST_FILES = 20  # in a room
MOST_BESIDE = 8  # modules beside the rooms


def room(module: str) -> str:
    """The entry of ROOMS that a module belongs to: the longest."""
    parts = module.split(".")
    names = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((name for name in names if name in ROOMS.split()), parts[0])


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


def test_every_module_has_its_room() -> None:
    assert {room(name) for name in MODULES} == set(ROOMS.split()), "add new rooms to ROOMS, take removed ones out"
    assert len(ROOMS.split()) == len(set(ROOMS.split()))


def test_rooms_are_small_and_few_modules_stand_beside_them() -> None:
    folders = Counter(path.parent for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
    assert {str(folder.relative_to(ROOT)): n for folder, n in folders.items() if n > MOST_FILES} == {}
    assert folders[ROOT / "tp_harness"] <= MOST_BESIDE + 1, "and __init__.py: put the new module into a room"


def test_a_module_imports_only_from_its_left() -> None:
    found = broken(lambda source: backward_imports(source) if source.name else [])
    assert found == {}, "these import from their right in ROOMS: move code, not the order"


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


def folder(module: str) -> str:
    """Where a module is; what is below kernels counts as kernels, and what stands beside folders as itself."""
    name = module if SOURCES[module].is_package else module.rpartition(".")[0]
    return "kernels" if name.startswith("kernels") else name or module


def test_folders_stand_in_no_circle() -> None:
    graph: dict[str, set[str]] = {}
    for name, source in SOURCES.items():
        if name:
            graph.setdefault(folder(name), set()).update(map(folder, own(source.imports())))
    arrows = {start: ends - {start} for start, ends in graph.items()}
    list(TopologicalSorter(arrows).static_order())
    assert len(arrows) > 30
    with pytest.raises(CycleError):
        list(TopologicalSorter(arrows | {"launch": {"commands"}}).static_order())


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
