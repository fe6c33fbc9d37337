"""Private and patched parts of libraries: one file per library, one small wrapper per part.

Everything else in this project uses what libraries document; `tests/libraries` holds both. No torch here.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ..errors import UsageError


class MovedPartError(UsageError):
    """The installed version of a library lacks a part that this project uses."""


@dataclass(frozen=True, kw_only=True)
class Library:
    """A library, the file beside this one that takes its parts, and the versions in which they were seen."""

    name: str
    file: str
    seen: Sequence[str]

    def part(self, path: str, of: object = None) -> Any:
        """The library's part at the path `module:name`; with `of`, that object's attribute of the path's last name.

        Raises:
            MovedPartError: it is not there.
        """
        try:
            return pkgutil.resolve_name(path) if of is None else getattr(of, path.rpartition(".")[2])
        except (ImportError, AttributeError) as error:
            raise MovedPartError(self.moved(path)) from error

    def moved(self, path: str) -> str:
        """The sentence for a part that is missing or has changed."""
        try:
            installed = version(self.name)
        except PackageNotFoundError:
            installed = "(not installed)"
        return (
            f"{self.name} {installed} has moved or changed {path.replace(':', '.')}, which "
            f"tp_harness/libraries/{self.file} takes as {self.name} {' and '.join(self.seen)} have it: install one of "
            "these, or mend that file."
        )
