"""The pages of a run: pure functions from a RunRecord to text, and writing them beside run.json. No torch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import UsageError
from ..results.mutation_score import Trial
from ..results.run_record import RunRecord
from . import html, junit, markdown
from .kills import read_trials

Page = Callable[[RunRecord, Sequence[Trial]], str]

PAGES: dict[str, Page] = {
    "report.html": html.render,
    "report.md": markdown.render,
    "junit.xml": junit.render,
}


def write_pages(record: RunRecord) -> list[Path]:
    """Render every page into the run's folder, and return their paths; each appears complete or not at all.

    Raises:
        UsageError: a page cannot be written, or a faults.json in the folder cannot be read.
    """
    trials = read_trials(record.folder)
    return [_write(record.folder / name, render(record, trials)) for name, render in PAGES.items()]


def _write(path: Path, text: str) -> Path:
    unfinished = path.with_suffix(f"{path.suffix}.part")
    try:
        unfinished.write_text(
            text.encode("utf-8", "replace").decode(), encoding="utf-8"
        )  # a name may hold half a character
        unfinished.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise UsageError(f"cannot write {path}: {error.strerror}; run.json is whole.") from None
    return path
