"""What is said of a whole run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from tp_harness.backends.local import LocalBackend
from tp_harness.config.options import Options, resolve
from tp_harness.models import presets
from tp_harness.verification.run_notes import run_notes


def test_packed_weights_are_spoken_of_where_a_model_is_no_stand_in_however_small(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(dataclasses.asdict(presets()["tiny"])))
    [note] = notes(str(path))
    assert note.startswith("packed MXFP4 weights cannot be sliced at tp 2: intermediate_size 160 / tp")
    assert not notes("tiny")


def notes(model: str) -> list[str]:
    return run_notes(resolve(Options(model=model, degrees=(1, 2))), LocalBackend(), [])
