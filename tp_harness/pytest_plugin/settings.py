"""What the options and the machine amount to: which cores there are, and where their locks are."""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from ..errors import UsageError

VIRTUAL_CORES = 32
NEURON_LOCKS = Path("/tmp/tp-harness-neuron-cores")  # of all users, so not TMPDIR, which may be one user's


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Resolved options. `neuron` is True where `cores` are NeuronCores and not just numbers."""

    neuron: bool
    cores: tuple[int, ...]
    locks: Path
    wait: float
    fork: bool
    out: Path


FOLDER = pytest.StashKey[Path]()  # of the run, known to every process of it
WORKER_FOLDER = "tp_harness_folder"  # how a worker learns of it
MISTAKE = "tp_harness_mistake"  # how a worker's usage error reaches the controller
KEY = pytest.StashKey[Settings]()


def settings_of(config: pytest.Config) -> Settings:
    """The settings of this run, made at the first call.

    Raises:
        pytest.UsageError: an option that cannot be, in one sentence.
    """
    if KEY not in config.stash:
        try:
            config.stash[KEY] = _resolve(config)
        except UsageError as error:
            raise pytest.UsageError(str(error)) from None
    return config.stash[KEY]


def find_neuron_cores() -> tuple[int, ...]:
    """The NeuronCores of this machine that the user's NEURON_RT_VISIBLE_CORES leaves; () without Neuron.

    Raises:
        UsageError: NEURON_RT_VISIBLE_CORES is no list of cores, or names none that exist.
    """
    if not _maybe_neuron():
        return ()
    from ..neuron.devices import read_machine  # noqa: PLC0415
    from ..neuron.environment import visible_cores  # noqa: PLC0415

    cores = read_machine(neuron_ls=lambda: None).cores
    given = os.environ.get("NEURON_RT_VISIBLE_CORES", "").strip()
    if not given or not cores:
        return cores
    chosen = tuple(core for core in visible_cores(given) if core in cores)
    if not chosen:
        raise UsageError(f"NEURON_RT_VISIBLE_CORES is {given!r}, but the NeuronCores here are {cores[0]}-{cores[-1]}.")
    return chosen


def _maybe_neuron() -> bool:
    """A quick look, because every pytest of the environment takes it."""
    try:
        return " neuron\n" in Path("/proc/devices").read_text()
    except OSError:
        return Path("/dev/neuron0").exists()


def _resolve(config: pytest.Config) -> Settings:
    wanted, wait = config.getoption("neuron_cores"), config.getoption("neuron_wait")
    if wanted is not None and not 1 <= wanted <= 1024:
        raise UsageError(f"--neuron-cores is {wanted}; a number between 1 and 1024 is needed.")
    if not 0 < wait < float("inf"):
        raise UsageError(f"--neuron-wait is {wait:g}; a positive number of seconds is needed.")
    found = find_neuron_cores()
    if found and wanted is not None and wanted != len(found):
        raise UsageError(
            f"--neuron-cores is {wanted}, but this machine has {len(found)} NeuronCores to use: leave it out, or "
            "choose cores with NEURON_RT_VISIBLE_CORES."
        )
    uid = os.getuid() if hasattr(os, "getuid") else 0
    locks = NEURON_LOCKS if found else Path(tempfile.gettempdir()) / f"tp-harness-virtual-cores-{uid}"
    return Settings(
        neuron=bool(found),
        cores=found or tuple(range(wanted or VIRTUAL_CORES)),
        locks=Path(config.getoption("neuron_locks") or locks).absolute(),
        wait=wait,
        fork=config.getoption("neuron_fork"),
        out=Path(config.getoption("tp_out")).absolute(),
    )


def own_folder(out: Path) -> Path:
    """The path of a run's folder below `out`: the time and this process, so that no two runs share one."""
    return out / f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-pytest-{os.getpid()}"
