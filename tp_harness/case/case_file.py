"""A user's file of Cases: read as it would be if it were run itself, once in each process and by each rank in it."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from ..errors import UnknownNameError, UsageError, described
from .case import Case

_OURS = __name__.partition(".")[0]
_FOLDERS: list[str] = []  # that were put on sys.path, for a file's neighbours


@dataclass(frozen=True, kw_only=True)
class UserFile:
    """A file that was run: its names, and the sha256 of the text that was run."""

    names: Mapping[str, object]
    sha256: str


class _Loaded(threading.local):
    """The files that were run; a rank that is a thread has its own, as one that is a process does."""

    def __init__(self) -> None:
        self.files: dict[tuple[Path, str], UserFile] = {}  # by path and sha256


_LOADED = _Loaded()


def load_case(spec: str, sha256: str = "") -> Case:
    """The Case that `FILE.py:NAME` names.

    Args:
        spec: file and name.
        sha256: of the file's text as another process has read it; "" for whatever text it has.

    Raises:
        UsageError: no such file or name, the file raises when run or has another text, or the object is no Case.
    """
    path, name = split_spec(spec)
    names = run_file(path, sha256).names
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
        UsageError: the text has neither form, or its file's name does not end with .py.
    """
    text, separator, name = (spec, ":", "") if spec.endswith(".py") else spec.rpartition(":")
    path = Path(text)
    if not separator or path.suffix != ".py" or not (name or spec == text):
        raise UsageError(
            f"--case is {spec!r}; it takes FILE.py, for all Cases of a file, or FILE.py:NAME, for example "
            "my_model.py:CASE."
        )
    return path, name


def run_file(path: Path, sha256: str = "") -> UserFile:
    """Run a user's file: once in a process, or in a rank that is a thread, however often it asks.

    `sha256` is as in `load_case`.

    Raises:
        UsageError: no such file, it raises when it is run, or its text is not the one of `sha256`.
    """
    place, loaded = path.resolve(), _LOADED.files
    if (place, sha256) in loaded:
        return loaded[place, sha256]
    if not path.is_file():
        raise UsageError(f"--case names the file {path}, which does not exist.")
    try:
        text = place.read_bytes()
        found = hashlib.sha256(text).hexdigest()
        if sha256 not in ("", found):
            raise UsageError(
                f"its text has the sha256 {found:.12}..., and the run was started with {sha256:.12}...: do not change "
                "it while ranks start; start the run again."
            )
        if (place, found) not in loaded:
            loaded[place, found] = UserFile(names=vars(_imported(place, text)), sha256=found)
        return loaded[place, found]
    except KeyboardInterrupt:
        raise
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    except BaseException as error:  # whatever a user's file raises becomes one sentence
        raise UsageError(f"{path} could not be imported: {described(error)}.") from error


@contextmanager
def imported_anew(specs: Iterable[str]) -> Iterator[None]:
    """Inside, Cases' files and the modules beside them are imported anew when needed; afterwards those before are back.

    A module that was imported earlier may have read an environment that was another run's. sys.path is left as it was.

    Raises:
        UsageError: as `split_spec`.
    """
    roots = {_place(split_spec(spec)[0].resolve())[0] for spec in specs}
    before = {name: sys.modules.pop(name) for root in roots for name in _beside(root)}
    forget_files()
    try:
        yield
    finally:
        forget_files()
        for name in [name for root in roots for name in _beside(root)]:
            sys.modules.pop(name, None)
        sys.modules.update(before)


def forget_files() -> None:
    """Forget all files that were run: each is run anew when next asked for. Their folders leave sys.path."""
    _LOADED.files.clear()
    while _FOLDERS:
        with suppress(ValueError):  # someone else has removed it
            sys.path.remove(_FOLDERS.pop())


def _beside(root: Path) -> list[str]:
    """The imported modules whose files are below this folder, except those of an environment in it."""
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


def _imported(path: Path, text: bytes) -> ModuleType:
    """The file as a module: of its package if it is in one, or else beside its neighbours, as when it is run itself."""
    root, name = _place(path)
    if sys.path[:1] != [str(root)]:
        sys.path.insert(0, str(root))  # and stays: functions of the Case may import neighbours later
        _FOLDERS.append(str(root))
    if "." in name:
        module = importlib.import_module(name)
        if Path(module.__file__ or "").resolve() != path:
            raise UsageError(f"another module of this name, {module.__file__}, was imported before it; run them apart")
        return module
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec  # a .py file always has one
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    exec(compile(text, str(path), "exec", dont_inherit=True), vars(module))  # the very text whose sha256 is known
    return module
