"""Reading faults.json, which `tp-harness faults --json` prints, from beside run.json, for the report's panel."""

from __future__ import annotations

import json
from pathlib import Path

from ..errors import UsageError
from ..results.from_json import from_json
from ..results.mutation_score import Trial

NAME = "faults.json"


def read_trials(folder: Path) -> tuple[Trial, ...]:
    """The trials of all faults; none where there is no such file.

    Raises:
        UsageError: the file cannot be read, or holds something else.
    """
    path = folder / NAME
    if not path.exists():
        return ()
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return tuple(from_json(Trial, each) for each in values["trials"])
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}.") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path} is not what `tp-harness faults --json` prints ({error}); write it again or take it away."
        ) from None
