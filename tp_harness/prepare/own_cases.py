"""The Cases of a user that a run verifies: those that `--case` names, each with its name in results."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from ..case.case import Case
from ..case.case_file import load_case, run_file, split_spec
from ..checkpoint.checkpoint import TensorSpec
from ..config.options import Resolved
from ..errors import UsageError
from ..models import families


@dataclass(frozen=True, kw_only=True)
class OwnCase:
    """One Case: `FILE.py:NAME`, and the label and layer of its results."""

    spec: str
    sha256: str  # of the text of its file
    label: str
    layer: int

    @property
    def file(self) -> str:
        """The path of its file."""
        return self.spec.rpartition(":")[0]

    def check_init(self, options: Resolved, specs: Sequence[TensorSpec]) -> None:
        """Refuse an --init that changes none of the Case's weights.

        Raises:
            UsageError: --init is tied, and none of the `specs` is a router's weight or bias.
        """
        ends = [end for family in families() for end in family.router]
        if options.init == "tied" and not any(spec.name.endswith(tuple(ends)) for spec in specs):
            raise UsageError(
                f"--init is tied, which ties experts by their router's {' and '.join(ends)}, and {self.label} has "
                "none; leave it out."
            )

    def check_kernels(self, options: Resolved, module: nn.Module) -> None:
        """Have the parts of a sharded module that have a kernel run by it, in place, where --kernels is nki.

        Raises:
            UsageError: no part of the module has a kernel.
        """
        if options.kernels == "nki" and not any([family.use_kernels(module) for family in families()]):
            raise UsageError(f"--kernels is nki, and no part of {self.label} has such a kernel; leave it out.")


def own_cases(specs: Sequence[str]) -> tuple[OwnCase, ...]:
    """All Cases that are named, in order; a FILE.py stands for all of its Cases, in the file's order.

    Cases of one `name` and layer are told apart by their Python names, or where these too are the same by their files.

    Raises:
        UsageError: a file that cannot be read or has no Case, one that is named twice, or two whose files import
            different modules of one name.
    """
    found: dict[str, Case] = {}
    texts: dict[str, str] = {}  # the sha256 of each one's file
    for spec in specs:
        path, name = split_spec(spec)
        _refuse_strangers(path)
        text = run_file(path).sha256
        for of_file, case in ({name: load_case(spec, text)} if name else _cases_of(path, text)).items():
            if f"{path}:{of_file}" in found:
                raise UsageError(f"--case names {path}:{of_file} twice; leave one out.")
            found[f"{path}:{of_file}"], texts[f"{path}:{of_file}"] = case, text
    labels = {spec: case.name for spec, case in found.items()}
    for own_name in (lambda spec: spec.rpartition(":")[2], lambda spec: spec):
        counts = Counter((labels[spec], case.layer) for spec, case in found.items())
        twice = [spec for spec, case in found.items() if counts[labels[spec], case.layer] > 1]
        labels |= {spec: f"{found[spec].name} ({own_name(spec)})" for spec in twice}
    return tuple(
        OwnCase(spec=spec, sha256=texts[spec], label=labels[spec], layer=case.layer) for spec, case in found.items()
    )


def named(cases: Iterable[OwnCase]) -> dict[str, Any]:
    """The options `case` and `targets` of a run of these Cases: each FILE.py:NAME, and its label and layer."""
    cases = tuple(cases)
    return {"case": tuple(own.spec for own in cases), "targets": tuple((own.label, own.layer) for own in cases)}


def with_cases_named(options: Resolved) -> Resolved:
    """The options of a run with every Case as FILE.py:NAME, and targets named as results are; others as they are.

    Raises:
        UsageError: as `own_cases`.
    """
    return replace(options, **named(own_cases(options.case))) if options.case else options


def log_suffix(specs: Sequence[str], spec: str) -> str:
    """The suffix that tells the logs of several Cases apart: the Python name, numbered where two have the same."""
    names = [each.rpartition(":")[2] for each in specs]
    name = spec.rpartition(":")[2]
    if len(names) == 1:
        return ""
    return f"-{name}" if names.count(name) == 1 else f"-{name}-{specs.index(spec)}"


def _cases_of(path: Path, text: str) -> dict[str, Case]:
    """The Cases of a file by their first names, without names that begin with an underscore.

    Raises:
        UsageError: the file has no Case, or cannot be run.
    """
    cases: dict[str, Case] = {}
    for name, value in run_file(path, text).names.items():
        if isinstance(value, Case) and not name.startswith("_") and all(value is not case for case in cases.values()):
            cases[name] = value
    if not cases:
        raise UsageError(f"{path} defines no Case; a tp_harness.Case at the top level of the file is needed.")
    return cases


def _refuse_strangers(path: Path) -> None:
    """Refuse a file whose neighbour has the name of a module that a Case file of another folder has imported.

    Python would give the file that module instead of its neighbour.
    """
    folder = path.resolve().parent
    for name, module in list(sys.modules.items()):
        file = Path(getattr(module, "__file__", None) or "")
        root = file.parent.parent if file.name == "__init__.py" else file.parent
        neighbours = (folder / f"{name}.py", folder / name / "__init__.py")
        beside = next((each for each in neighbours if each.is_file() and each != path.resolve()), None)
        if beside and root in _FOLDERS - {folder}:
            raise UsageError(f"{path} may import {beside}, but {file} was imported before it: run these files apart.")
    _FOLDERS.add(folder)


_FOLDERS: set[Path] = set()  # the folders of all Case files that this process has run
