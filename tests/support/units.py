"""What pytest-xdist gives to one worker: a test, or a file of tests that share a fixture of the whole file."""

from __future__ import annotations

import functools
import re
from pathlib import Path

from xdist.scheduler import LoadScopeScheduling

SHARED = re.compile(r"^@pytest\.fixture\(.*\bscope=\"module\"", flags=re.MULTILINE)


@functools.cache
def shares(path: Path) -> bool:
    """Whether a file has a fixture that is made once for all of its tests."""
    return bool(SHARED.search(path.read_text(encoding="utf-8")))


def unit(root: Path, test: str) -> str:
    """What goes to one worker with this test, as pytest names it: itself, or its file, whose fixture is made once."""
    file = test.partition("::")[0]
    return file if shares(root / file) else test


class ByFixture(LoadScopeScheduling):
    """Deals such units out, those of most tests first.

    The groups of xdist's own would do as well, but pytest from 9.2 on ignores those of pytest-xdist 3.8.0.
    """

    def _split_scope(self, nodeid: str) -> str:
        return unit(self.config.rootpath, nodeid)
