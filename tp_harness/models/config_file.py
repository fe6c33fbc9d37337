"""Reading the file of a model's configuration, whichever family it is of. No torch."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import UsageError

_MOST_BYTES = 1 << 24  # a config.json has a few kilobytes


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        UsageError: the file cannot be read, is no regular one or a large one, is no JSON object, or gives a name twice.
    """
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise UsageError(f"cannot read {path}: not a regular file.")  # a pipe would be waited for
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise UsageError(f"{path} is longer than {_MOST_BYTES} bytes; a config.json has a few thousand.")
        values = json.loads(content.decode("utf-8"), object_pairs_hook=partial(_unique, path))
    except UsageError:
        raise
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:  # ValueError: neither UTF-8 nor JSON, or a number of 5000 digits
        raise UsageError(f"{path} is not JSON: {error}.") from None
    if not isinstance(values, dict):
        raise UsageError(f"{path} holds a JSON {type(values).__name__}; an object is needed.")
    return values


def _unique(path: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object in which no name stands twice: JSON's readers would silently take the last."""
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise UsageError(f"{path}: {name} is given twice, as {values[name]!r:.60} and {value!r:.60}; keep one.")
        values[name] = value
    return values
