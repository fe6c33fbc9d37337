"""Private and patched parts of libraries: each is where it was, does what it did, and is taken in one place."""

from __future__ import annotations

import ast
import os
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import pytest
import torch
from library_parts import FILES, PARTS
from sources import SOURCES, Source, broken

from tp_harness.libraries import Library, MovedPartError

OF_OBJECTS = {  # parts that no class has, but its objects
    "torch._ops:OpOverload._schema": lambda _request: torch.ops.aten.add.Tensor,
    "pytest:Function._fixtureinfo": lambda request: request.node,
}

# torch_xla changes the environment of a process that imports it, so that its parts are looked at in one of their own.
OWN_PROCESS = "PARTS_OF_TORCH_XLA"
HERE = [path for path in PARTS if path.startswith("torch_xla") == (OWN_PROCESS in os.environ)]


def library_of(path: str) -> Library:
    """The library, and a skip where it is not installed."""
    values = vars(import_module(f"tp_harness.{PARTS[path]}")).values()
    library: Library = next(value for value in values if isinstance(value, Library))
    assert PARTS[path] == f"libraries.{library.file.removesuffix('.py')}"
    try:
        version(library.name)
    except PackageNotFoundError:
        pytest.skip(f"{library.name} is not installed here")
    return library


def test_every_part_is_known_to_these_tests() -> None:
    calls = [node for source in FILES for node in ast.walk(ast.parse(source.text)) if isinstance(node, ast.Call)]
    taken = [ast.unparse(call.args[0]) for call in calls if ast.unparse(call.func).endswith(".part")]
    assert {path.strip("'") for path in taken} == set(PARTS)


@pytest.mark.parametrize("path", HERE)
def test_a_part_is_where_it_was(path: str, request: pytest.FixtureRequest) -> None:
    """Mend the file that the sentence names, and add the version to what it has seen."""
    found = OF_OBJECTS[path](request) if path in OF_OBJECTS else None
    assert library_of(path).part(path, found) is not None


@pytest.mark.parametrize("path", HERE)
def test_a_part_that_has_gone_is_named(
    path: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = library_of(path)
    owner, _, name = path.replace(":", ".").rpartition(".")
    found = OF_OBJECTS[path](request) if path in OF_OBJECTS else None
    with monkeypatch.context() as patch:
        holder = pkgutil.resolve_name(owner) if found is None else found
        for place in (holder, *type.mro(holder if isinstance(holder, type) else type(holder))):
            if name in vars(place):
                patch.delattr(place, name)
        with pytest.raises(MovedPartError) as caught:
            library.part(path, found)
    assert str(caught.value) == (
        f"{library.name} {version(library.name)} has moved or changed {owner}.{name}, which tp_harness/libraries/"
        f"{library.file} takes as {library.name} {' and '.join(library.seen)} have it: install one of these, or mend "
        "that file."
    )


@pytest.mark.skipif(find_spec("torch_xla") is None, reason="torch-xla is not installed here: `make test-xla`")
@pytest.mark.skipif(OWN_PROCESS in os.environ, reason="this is the process of their own")
def test_the_parts_of_torch_xla() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "test_a_part_"]
    env = os.environ | {OWN_PROCESS: "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=250)
    count = sum(path.startswith("torch_xla") for path in PARTS)
    assert done.returncode == 0, done.stdout
    assert count > 5 and f"{2 * count} passed" in done.stdout


def test_a_library_that_is_not_there_is_named() -> None:
    library = Library(name="no-such-library", file="none.py", seen=("1.0",))
    with pytest.raises(
        MovedPartError, match=r"^no-such-library \(not installed\) has moved or changed nowhere\._part,"
    ):
        library.part("nowhere:_part")


DOCUMENTED = {"_current_frames", "_exit", "_getframe", "_replace"}  # by Python, underscore or not
SETTINGS = {"os.environ", "sys.stdin", "sys.stdout", "sys.stderr", "tempfile.tempdir"}  # documented to be replaced


def is_private(name: str) -> bool:
    return any(part.startswith("_") and not part.startswith("__") for part in name.split("."))


def own_names(sources: Iterable[Source]) -> set[str]:
    """Every name that these define: functions, classes, variables, attributes, arguments."""
    nodes = [node for source in sources for node in ast.walk(ast.parse(source.text))]
    found = {node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    found |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return found | {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}


BORROWED = {name for name in own_names(FILES) if is_private(name)}  # those that are overridden or replaced among them
OWN = own_names(SOURCES.values()) - BORROWED


def borrowed(source: Source) -> list[str]:
    """Private parts of libraries that it uses or overrides, and parts of libraries that it replaces."""
    nodes = list(ast.walk(ast.parse(source.text)))
    imports = {name for name in source.imports() if not name.startswith("tp_harness")}
    modules = {alias.asname or alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    attributes = [node for node in nodes if isinstance(node, ast.Attribute)]
    private = {node.attr for node in attributes if is_private(node.attr)} - OWN - DOCUMENTED
    replaced = {ast.unparse(node) for node in attributes if isinstance(node.ctx, ast.Store)} - SETTINGS
    replaced = {name for name in replaced if re.fullmatch(r"[\w.]+", name) and name.partition(".")[0] in modules}
    overridden = {node.name for node in nodes if isinstance(node, ast.FunctionDef)} & BORROWED
    return sorted({name for name in imports if is_private(name)} | private | replaced | overridden)


def test_private_parts_of_libraries_are_taken_in_libraries_alone() -> None:
    found = broken(lambda source: [] if source.name.startswith("libraries.") else borrowed(source))
    assert found == {}, "write wrappers in tp_harness/libraries/ for what these take"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("import torch\ntorch.distributed.distributed_c10d._world.pg_map", ["_world"]),
        ("from torch._C._distributed_c10d import _x", ["torch._C._distributed_c10d._x"]),
        ("from torch.testing._internal.distributed.fake_pg import FakeStore", None),
        ("import torch_xla\nf = lambda: torch_xla._XLAC", ["_XLAC"]),
        ("class A(LocalElasticAgent):\n    def _start_workers(self, group): pass", ["_start_workers"]),
        ("import socket\nsocket.getfqdn = print", ["socket.getfqdn"]),
        ("import torch.distributed as dist\ndist.new_group = print", ["dist.new_group"]),
        ("import sys\nsys._getframe()\nclass A:\n    def f(self): self.group._all_reduce(self)", []),
        ("from .group import _x\nfrom __future__ import annotations", []),
    ],
    ids=["attribute", "import", "module", "extension", "overridden", "patched", "patched_alias", "allowed", "own"],
)
def test_a_private_part_would_be_found(text: str, found: list[str] | None) -> None:
    assert borrowed(Source("parallel.mesh", text)) == (
        ["torch.testing._internal.distributed.fake_pg.FakeStore"] if found is None else found
    )
