"""Continuing a run that was cut short: its record taken up again, with the options it was started with. No torch."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config.options import Options, Resolved, case_file, case_specs, resolve
from ..errors import UsageError
from ..models import families
from ..system.scratch_dir import lock_folder
from .from_json import from_json
from .run_record import RunRecord, describe_environment, read_run

FREE = ("timeout",)  # options that may change when resuming, because no verdict depends on them
_FLAGS = {"components": "component", "degrees": "tp", "layers": "layer", "dtypes": "dtype"}


def take_up(folder: Path, given: Mapping[str, Any]) -> tuple[RunRecord, Options]:
    """The unfinished run in a folder, which is locked, and its options.

    Args:
        folder: of the run.
        given: options that were given together with --resume, by field of `Options`.

    Raises:
        UsageError: no run there, it has finished or still goes on, or it was started with other options, packages,
            case file or checkpoint; the message holds both values.
    """
    try:
        lock = lock_folder(folder)
    except OSError as error:
        raise UsageError(f"cannot resume {folder}: {error.strerror}; the folder of a run is needed.") from None
    if lock is None:
        raise UsageError(f"the run in {folder} is still going on; wait for it, or start another without --resume.")
    try:
        record = read_run(folder)
        asked = _checked(folder, record, given)
    except BaseException:
        os.close(lock)
        raise
    record.lock = lock
    record.paused = time.time() - record.started - record.seconds
    record.notes.append(f"resumed after {len(record.results)} results, cut short after {record.seconds:.0f} s")
    return record, dataclasses.replace(asked, **{name: given[name] for name in FREE if name in given})


def _checked(folder: Path, record: RunRecord, given: Mapping[str, Any]) -> Options:
    """What the run was asked, if it can go on here and with these options."""
    if record.finished:
        raise UsageError(
            f"the run in {folder} has finished, with exit code {record.exit_code} and {len(record.results)} results; "
            "there is nothing to resume."
        )
    asked = asked_of(record)
    _check_given(folder, asked, given)
    _check_world(record, asked)
    return asked


def asked_of(record: RunRecord) -> Options:
    """The options that a run was started with.

    Raises:
        UsageError: run.json holds options that `verify` would refuse, or would resolve to others.
    """
    try:
        stored = from_json(Resolved, record.options)
        stored = dataclasses.replace(stored, model=_model(stored.model))
    except (TypeError, ValueError) as error:
        raise UsageError(f"{record.path} does not hold the options of a run: {error}.") from None
    same = {f.name: getattr(stored, f.name) for f in dataclasses.fields(Options) if hasattr(stored, f.name)}
    asked = Options(
        **same
        | {
            "components": () if stored.case else tuple(dict.fromkeys(name for name, _ in stored.targets)),
            "model": stored.model_name,
            "backend": record.backend,
            "checkpoint": Path(stored.checkpoint) if stored.checkpoint else None,
            "depth": stored.depth or None,
            "ep": stored.ep or None,
            "cp": stored.cp or None,
            "out": Path(stored.out),
        }
        | (dict.fromkeys(("model", "batch", "seq")) if stored.case else {"case": None})
    )
    if stored.case:  # nobody looks into their files here
        stored = dataclasses.replace(stored, targets=resolve(asked).targets)
    if resolve(asked).targets != stored.targets:
        asked = dataclasses.replace(asked, layers=tuple(dict.fromkeys(layer for _, layer in stored.targets)))
    now, then = _flat(resolve(asked)), _flat(stored)
    for name in now:
        if now[name] != then[name]:
            raise UsageError(
                f"{record.path} says that {name} is {then[name]}, which would be {now[name]} now; start a new run."
            )
    return asked


def _model(values: Any) -> Any:
    """The model that a record holds as JSON values."""
    if not isinstance(values, dict):  # the default's: a record of a user's Case holds none
        return values
    named = (each for each in families() if values.keys() <= {spec.name for spec in dataclasses.fields(each.config)})
    return from_json(next(named, families()[0]).config, values)


def inputs_of(options: Resolved) -> dict[str, str]:
    """Identity of each file that a run reads, by path: sha256 of a case file, size and time of a checkpoint's file."""
    found = {}
    for case in map(Path, map(case_file, options.case)):
        if case.is_file():
            found[str(case)] = hashlib.sha256(case.read_bytes()).hexdigest()
    checkpoint = Path(options.checkpoint)
    if options.checkpoint:
        for path in _entries(checkpoint):
            found[str(path)] = _identity(path)
    return found


def _entries(checkpoint: Path) -> list[Path]:
    try:
        return sorted(checkpoint.iterdir()) if checkpoint.is_dir() else [checkpoint]
    except OSError:  # reported when it is opened
        return []


def _identity(path: Path) -> str:
    """Size and time of a file; the error of one that cannot be read, such as a link to nothing."""
    try:
        return f"{path.stat().st_size} bytes of {path.stat().st_mtime_ns}"
    except OSError as error:
        return str(error.strerror)


def _check_given(folder: Path, asked: Options, given: Mapping[str, Any]) -> None:
    resolved = resolve(asked)
    for name, value in given.items():
        same = (name, value) == ("backend", "auto") or getattr(asked, name) == value
        same = same or (name == "case" and value == tuple(dict.fromkeys(map(case_file, case_specs(asked.case)))))
        if name in FREE or same:
            continue
        if name == "backend" or resolve(dataclasses.replace(asked, **{name: value})) != resolved:
            raise UsageError(
                f"--{_FLAGS.get(name, name)} is {_words(value)} here and {_words(getattr(asked, name))} in the run in "
                f"{folder}; leave it out to resume, or leave --resume out."
            )


def _check_world(record: RunRecord, asked: Options) -> None:
    """Refuse another program, other packages or files: their results cannot stand in one record."""
    now = describe_environment() | {"inputs": inputs_of(resolve(asked))}
    for part in ("tp_harness", "packages", "inputs"):
        old, new = record.environment.get(part) or {}, now[part]
        olds, news = (x if isinstance(x, dict) else {part: x} for x in (old, new))
        for name in olds | news:
            if olds.get(name) != news.get(name):
                raise UsageError(
                    f"{name} is {news.get(name, 'absent')} and was {olds.get(name, 'absent')} when the run in "
                    f"{record.folder} was started; start a new run."
                )


def _flat(options: Resolved) -> dict[str, Any]:
    values = dataclasses.asdict(options)
    return {f"the model's {name}": value for name, value in values.pop("model").items()} | values


def _words(value: Any) -> str:
    return ",".join(map(str, value)) or "the default" if isinstance(value, tuple) else str(value)
