"""The paths of a result's rank logs that are not empty. No torch."""

from __future__ import annotations

from pathlib import PurePath

from ..results.result import Result
from ..results.run_record import RunRecord


def written_logs(record: RunRecord, result: Result) -> list[tuple[int, str]]:
    """(rank, path relative to the run's folder) of each log that exists and is not empty.

    The logs of ranks that hold the first wrong tensor or the worst element come first.
    """
    parts = PurePath(result.log_dir).parts
    if "logs" not in parts:
        return []
    folder = "/".join(parts[len(parts) - parts[::-1].index("logs") - 1 :])
    wrong = result.first_divergence.ranks if result.first_divergence else ()
    wrong = wrong or ((result.worst.rank,) if result.worst else ())
    order = [rank for rank in dict.fromkeys((*wrong, *range(result.tp))) if rank < result.tp]
    found = ((rank, f"{folder}/rank{rank}.log") for rank in order)
    return [(rank, path) for rank, path in found if _holds_text(record, path)]


def _holds_text(record: RunRecord, path: str) -> bool:
    try:
        return (record.folder / path).stat().st_size > 0
    except OSError:
        return False
