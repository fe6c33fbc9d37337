"""The run's folder and its run.json: opened before any work, rewritten whole after every result. No torch."""

from __future__ import annotations

import calendar
import contextlib
import json
import os
import platform
import secrets
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..neuron.sdk_packages import PYTHON_PACKAGES
from ..system.scratch_dir import lock_folder
from ..version import __version__
from .from_json import from_json
from .result import SCHEMA, Control, Result, exit_code, to_json

_TIME = "%Y-%m-%dT%H:%M:%SZ"


@dataclass(kw_only=True)
class RunRecord:
    """What run.json holds. `save` replaces the file atomically, so a reader never sees half of one."""

    folder: Path
    command: str
    options: dict[str, Any]
    backend: str
    blind_spots: str
    environment: dict[str, Any]
    started: float = field(default_factory=time.time)
    results: list[Result] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    controls: list[Control] = field(default_factory=list)
    finished: bool = False
    run_id: str = ""  # the folder's name when the run was made, wherever it is now
    seconds: float = 0.0  # until the last save
    awaited: bool = False  # other hosts have results of the run, which is not finished before they are here
    paused: float = 0.0  # seconds between being cut short and being resumed
    lock: int | None = None  # descriptor that holds the folder's lock, see scratch_dir.lock_folder
    _texts: list[str] = field(default_factory=list)  # the JSON of each result, made once

    def __post_init__(self) -> None:
        self.run_id = self.run_id or self.folder.name

    @property
    def path(self) -> Path:
        """Where run.json is."""
        return self.folder / "run.json"

    @property
    def exit_code(self) -> int:
        """The exit code of these results; see `result.exit_code`."""
        return exit_code([result.status for result in self.results])

    def add(self, result: Result) -> None:
        """Append a result and `save`, which may raise UsageError."""
        self.results.append(result)
        self._texts.append(json.dumps(to_json(result), allow_nan=False))
        self.save()

    def replace(self, index: int, result: Result) -> None:
        """Replace the result at `index` by one that says more of the same, and `save`, which may raise UsageError."""
        self.results[index] = result
        self._texts[index] = json.dumps(to_json(result), allow_nan=False)
        self.save()

    def release(self) -> None:
        """Give the folder's lock back, so that other processes can resume the run."""
        if self.lock is not None:
            os.close(self.lock)
            self.lock = None

    def discard_if_empty(self) -> None:
        """Remove the folder of a run in which nothing was found and no rank left a log."""
        if not self.results and not (self.folder / "logs").exists():
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)
                self.folder.rmdir()

    def save(self) -> None:
        """Write run.json.

        Raises:
            UsageError: the folder cannot be written to; what an earlier call wrote stays whole.
        """
        self.seconds = round(time.time() - self.started - self.paused, 3)
        values = {
            "schema": SCHEMA,
            "run_id": self.run_id,
            "command": self.command,
            "started": time.strftime(_TIME, time.gmtime(self.started)),
            "seconds": self.seconds,
            "finished": self.finished and not self.awaited,
            "exit_code": self.exit_code if self.finished and not self.awaited else None,
            "backend": self.backend,
            "blind_spots": self.blind_spots,
            "options": self.options,
            "environment": self.environment,
            "notes": self.notes,
            "controls": to_json(self.controls),
        }
        head = json.dumps(values, indent=1, allow_nan=False).removesuffix("\n}")
        text = head + ',\n "results": [\n  ' + ",\n  ".join(self._texts) + "\n ]\n}\n"
        unfinished = self.folder / "run.json.part"
        try:
            unfinished.write_text(text, encoding="utf-8")
            unfinished.replace(self.path)
        except BaseException as error:
            with contextlib.suppress(OSError):
                unfinished.unlink()
            if not isinstance(error, OSError):
                raise
            hint = f"; go on later with --resume {self.folder}" if len(self.results) > 1 else ""
            raise UsageError(
                f"cannot write {self.path}: {error.strerror}; {len(self.results)} results were found{hint}."
            ) from None


def open_record(
    out: Path,
    *,
    command: str,
    options: dict[str, Any],
    backend: str,
    blind_spots: str,
    inputs: Mapping[str, str] | None = None,
) -> RunRecord:
    """A record in a new folder OUT/<run-id>, named by the time and a random suffix so that no two runs share one.

    `inputs` identifies the files that the run reads, see `resume.inputs_of`.

    Raises:
        UsageError: the folder cannot be made or written to.
    """
    folder = out / f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(3)}"
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise UsageError(
            f"cannot make the output folder {folder}: {error.strerror}; choose another with --out."
        ) from None
    record = RunRecord(
        folder=folder,
        command=command,
        options=options,
        backend=backend,
        blind_spots=blind_spots,
        environment=describe_environment() | {"inputs": dict(inputs or {})},
        lock=lock_folder(folder),
    )
    try:
        record.save()
    except BaseException:
        record.discard_if_empty()
        raise
    return record


@dataclass(frozen=True, kw_only=True)
class StoredRun:
    """What run.json holds, as `RunRecord.save` writes it."""

    run_id: str
    command: str
    started: str
    seconds: float
    finished: bool
    backend: str
    blind_spots: str
    options: dict[str, Any]
    environment: dict[str, Any]
    notes: list[str]
    results: list[Result]
    controls: list[Control] = field(default_factory=list)


def read_run(path: Path) -> RunRecord:
    """The run in a folder (or in a run.json), as it was recorded; without torch.

    Raises:
        UsageError: no run.json, one of another schema, or one that does not hold a run.
    """
    file = path / "run.json" if path.is_dir() else path
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}; give the folder of a run, which holds one.") from None
    except ValueError as error:
        raise UsageError(f"{file} is not JSON: {error}.") from None
    schema = values.get("schema") if isinstance(values, dict) else None
    if schema != SCHEMA:
        raise UsageError(f"{file} has schema {schema}, but schema {SCHEMA} is what tp-harness {__version__} reads.")
    try:
        stored = from_json(StoredRun, values)
        started = calendar.timegm(time.strptime(stored.started, _TIME))
    except ValueError as error:
        raise UsageError(f"{file} does not hold a run: {error}.") from None
    if isinstance(case := stored.options.get("case"), str):  # of a version with one Case per run
        stored.options["case"] = [case] if case else []
    fields = {name: value for name, value in vars(stored).items() if name != "started"}
    texts = [json.dumps(result) for result in values["results"]]  # with fields that this version lacks
    return RunRecord(folder=file.parent, started=started, _texts=texts, **fields)


def describe_environment() -> dict[str, Any]:
    """Versions and machine, as they were."""
    packages = {}
    for name in (*PYTHON_PACKAGES, "numpy", "safetensors"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            packages[name] = metadata.version(name)
    return {
        "tp_harness": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "packages": packages,
    }


def command_line() -> str:
    """The command as it was typed, for repeating it."""
    import shlex  # noqa: PLC0415  (used once)

    return shlex.join(["tp-harness", *sys.argv[1:]])
