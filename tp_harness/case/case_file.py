"""A user's file of Cases: read as it would be if it were run itself."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from ..errors import UnknownNameError, UsageError, described
from .case import Case

_OURS = __name__.partition(".")[0]


def load_case(spec: str) -> Case:
    """The Case that `FILE.py:NAME` names.

    Raises:
        UsageError: no such file or name, the file raises when run, or the object is no Case.
    """
    path, name = split_spec(spec)
    names = vars(run_file(path))
    cases = {key: value for key, value in names.items() if isinstance(value, Case)}
    if name not in names:
        if not cases:
            raise UsageError(f"{path} defines no Case, and nothing called {name!r}.")
        raise UnknownNameError(f"case in {path}", name, cases)
    if name not in cases:
        kind = type(names[name]).__name__
        raise UsageError(f"{path}:{name} is a {kind}; a tp_harness.Case is needed.")
    return cases[name]


def split_spec(spec: str) -> tuple[Path, str]:
    """The file of `FILE.py:NAME` or `FILE.py`, and the name, "" for none.

    Raises:
        UsageError: it is no such text.
    """
    text, separator, name = (spec, ":", "") if spec.endswith(".py") else spec.rpartition(":")
    path = Path(text)
    if not separator or path.suffix != ".py" or not (name or spec == text):
        raise UsageError(
            f"--case is {spec!r}; it takes FILE.py, for all Cases of a file, or FILE.py:NAME, for example "
            "my_model.py:CASE."
        )
    return path, name


def run_file(path: Path) -> ModuleType:
    """A user's file as a module.

    Raises:
        UsageError: no such file, or it raises when it is run.
    """
    if not path.is_file():
        raise UsageError(f"--case names the file {path}, which does not exist.")
    try:
        return _imported(path.resolve())
    except KeyboardInterrupt:
        raise
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    except BaseException as error:  # whatever the user's file does, the answer is a sentence
        raise UsageError(f"{path} could not be imported: {described(error)}.") from error


@contextmanager
def imported_anew(specs: Iterable[str]) -> Iterator[None]:
    """Have the modules beside cases' files imported again by who needs them, and put those back that were there.

    What such a module has read from the environment when it was imported would be another run's.
    """
    roots = {_place(split_spec(spec)[0].resolve())[0] for spec in specs}
    before = {name: sys.modules.pop(name) for root in roots for name in _beside(root)}
    try:
        yield
    finally:
        for name in [name for root in roots for name in _beside(root)]:
            sys.modules.pop(name, None)
        sys.modules.update(before)


def _beside(root: Path) -> list[str]:
    """The modules that Python files of this folder are: not those of an environment that is below it."""
    found = []
    for name, module in list(sys.modules.items()):
        top, file = name.partition(".")[0], getattr(module, "__file__", None)
        path = Path(file) if isinstance(file, str) else None
        if path is not None and path.suffix == ".py" and top != _OURS and path.is_relative_to(root):
            found += [name] if path.relative_to(root).parts[0] in (top, f"{top}.py") else []
    return found


def _place(path: Path) -> tuple[Path, str]:
    """The folder from which a file is imported, above its package if it is in one, and its name from there."""
    root, name = path.parent, path.stem
    while (root / "__init__.py").is_file():
        root, name = root.parent, f"{root.name}.{name}"
    return root, name


def _imported(path: Path) -> ModuleType:
    """The file as a module: of its package if it is in one, or else beside its neighbours, as when it is run itself."""
    root, name = _place(path)
    sys.path.insert(0, str(root))
    if "." in name:
        module = importlib.import_module(name)
        if Path(module.__file__ or "").resolve() != path:
            raise UsageError(f"another module of this name, {module.__file__}, was imported before it; run them apart")
        return module
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader  # a .py file always has one
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
