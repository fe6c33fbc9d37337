"""The command line's parser: every mistake is one sentence, and an unknown option is told the nearest one."""

from __future__ import annotations

import argparse
import re
from typing import Any, NoReturn

from ..errors import UsageError, nearest


class Parser(argparse.ArgumentParser):
    """An `argparse.ArgumentParser` that raises a `UsageError` instead of printing its usage and leaving."""

    def error(self, message: str) -> NoReturn:
        """Refuse a command line that cannot be read.

        Raises:
            UsageError: always.
        """
        raise UsageError(f"{message} (see `{self.prog} --help`).")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Parse, and refuse what is unknown to this parser: a subcommand knows its options, the whole command does not.

        Raises:
            UsageError: an unknown option, an argument too many, or a value that cannot be read.
        """
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self._refuse(unknown)
        return found, unknown

    def _refuse(self, unknown: list[str]) -> NoReturn:
        word = next((word for word in unknown if word.startswith("-")), None)
        if word is None:
            self.error(f"unexpected argument {unknown[0]!r}")
        option = word.partition("=")[0]
        names = {known.lstrip("-"): known for known in re.findall(r"--?[a-z][\w-]*", self.format_help())}
        near = nearest(option.lstrip("-"), names)
        hint = f" Did you mean {names[near]}?" if near else ""
        raise UsageError(f"unknown option {option}.{hint} `{self.prog} --help` lists all.")
