"""AWS's `neuron-ls --json-output`, of any version: running it, and understanding what it printed. No torch.

Older tools omit fields (neuroncore_ids, cpu_affinity), so every one but the list itself may be absent.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LS_SECONDS = 0.5
_LS_FOLDER = "/opt/aws/neuron/bin"


@dataclass(frozen=True, kw_only=True)
class Holder:
    """A process that has a Neuron device open."""

    pid: int
    command: str


@dataclass(frozen=True, kw_only=True)
class Listed:
    """What neuron-ls says of one device; None and () where it says nothing."""

    index: int
    cores: tuple[int, ...] = ()
    core_count: int | None = None
    memory_bytes: int | None = None
    connected: tuple[int, ...] = ()
    holders: tuple[Holder, ...] = ()


def parse_neuron_ls(text: str) -> tuple[Listed, ...]:
    """The devices in the output of `neuron-ls --json-output`, of any version.

    Raises:
        ValueError: the text is not JSON, or holds no list of devices; the message says which.
    """
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"neuron-ls printed no JSON ({error.msg} at character {error.pos})") from None
    if isinstance(values, dict):
        values = next((value for value in values.values() if isinstance(value, list)), None)
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise ValueError("neuron-ls printed no list of devices")
    return tuple(_listed(value, place) for place, value in enumerate(values))


def _listed(value: Mapping[str, Any], place: int) -> Listed:
    processes = value.get("neuron_processes")
    entries = processes if isinstance(processes, list) else []
    pids = [(number(entry.get("pid")), entry) for entry in entries if isinstance(entry, dict)]
    index = number(value.get("neuron_device"))
    return Listed(
        index=place if index is None else index,
        cores=numbers(value.get("neuroncore_ids")),
        core_count=number(value.get("nc_count")),
        memory_bytes=number(value.get("memory_size")),
        connected=numbers(value.get("connected_to")),
        holders=tuple(Holder(pid=pid, command=str(entry.get("command", ""))) for pid, entry in pids if pid),
    )


def run_neuron_ls() -> str | None:
    """What `neuron-ls --json-output` prints, or None where it is not installed.

    Raises:
        ValueError: it could not be run, failed, or took more than LS_SECONDS.
    """
    program = shutil.which("neuron-ls") or shutil.which("neuron-ls", path=_LS_FOLDER)
    if program is None:
        return None
    try:
        done = subprocess.run(
            [program, "--json-output"], capture_output=True, text=True, timeout=LS_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"neuron-ls did not answer within {LS_SECONDS:g} s") from None
    except OSError as error:
        raise ValueError(f"neuron-ls could not be run: {error.strerror}") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise ValueError(f"neuron-ls failed: {said[-1] if said else f'exit code {done.returncode}'}")
    return done.stdout


def number(value: Any) -> int | None:
    """The whole number that a JSON value or a text stands for; None if it is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    with contextlib.suppress(ValueError, OverflowError):
        return int(value)
    return None


def numbers(values: Any) -> tuple[int, ...]:
    """Those of a list's values that are whole numbers; () for anything else."""
    found = [number(value) for value in values] if isinstance(values, list) else []
    return tuple(value for value in found if value is not None)
