"""A Case's `rename`: what each tensor of the sharded module is made of, where its names are not the reference's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch

from ...errors import UnknownNameError
from ...parallel.placement import shape_only
from .sources import STAR, AsItIs, Get, RenameError, Source, pattern_of, source

Rename = Mapping[str, "str | Source"] | Callable[[str], "str | Source | None"]


def check_rename(rename: object) -> None:
    """Check what a Case is given as `rename`.

    Raises:
        RenameError: it is neither a mapping of names to sources nor a function.
    """
    if not (isinstance(rename, Mapping) or callable(rename)):
        raise RenameError(f"rename of a Case is {rename!r:.60}; a mapping or a function of names is needed.")
    for name, given in rename.items() if isinstance(rename, Mapping) else ():
        if not isinstance(name, str):
            raise RenameError(f"rename of a Case has the name {name!r:.60}; strings are needed.")
        source(given)


@dataclass(frozen=True, kw_only=True)
class Renaming:
    """Of what the tensors of a sharded module are made.

    Args:
        rename: as a Case says it.
        prefix: of the names in a checkpoint.
        known: the names of the reference's tensors, without prefix.
    """

    rename: Rename
    prefix: str
    known: frozenset[str]

    def keys(self, name: str) -> tuple[str, ...]:
        """The names in the checkpoint of what the sharded module's tensor `name` is made of."""
        return tuple(self.prefix + own for own in self.source(name).names)

    def tensor(self, name: str, get: Get) -> torch.Tensor:
        """The full tensor, of any shape, that the sharded module's tensor `name` is cut from; `get` reads a checkpoint.

        Raises:
            RenameError: tensors that do not fit one another.
        """
        made = self.source(name)
        try:
            return made.make(lambda own: get(self.prefix + own))
        except (RuntimeError, IndexError) as error:
            shapes = ", ".join(f"{own} {list(get(self.prefix + own).shape)}" for own in made.names)
            raise RenameError(f"rename cannot make {name} of {shapes}: {str(error).splitlines()[0]}.") from error

    def shape(self, name: str, shapes: Callable[[str], Iterable[int]]) -> tuple[int, ...]:
        """The full shape, where `shapes` gives those of a checkpoint's tensors.

        Raises:
            RenameError: tensors that do not fit one another.
        """
        return tuple(self.tensor(name, lambda own: shape_only(tuple(shapes(own)))).shape)

    def source(self, name: str) -> Source:
        """What the sharded module's tensor `name` is made of: of its own name where `rename` does not say.

        Raises:
            RenameError: `rename` holds something else than sources.
            UnknownNameError: a name that the reference does not have.
        """
        found = self._said(name)
        for own in () if found is None else found.names:
            if own not in self.known:
                raise UnknownNameError(
                    f"tensor of the reference, of which rename makes {name},", own, sorted(self.known)
                )
        return found or AsItIs(name)

    def _said(self, name: str) -> Source | None:
        if not isinstance(self.rename, Mapping):
            given = self.rename(name)
            return None if given is None else source(given).bound((), self.known)
        if name in self.rename:
            return source(self.rename[name]).bound((), self.known)
        for pattern, given in self.rename.items():
            if STAR in pattern and (match := pattern_of(pattern).fullmatch(name)):
                return source(given).bound(match.groups(), self.known)
        return None

    def unused(self, names: Iterable[str]) -> list[str]:
        """The names and patterns of `rename` that fit none of the sharded module's `names`."""
        names = tuple(names)
        patterns = self.rename if isinstance(self.rename, Mapping) else ()
        return [pattern for pattern in patterns if not any(map(pattern_of(pattern).fullmatch, names))]
