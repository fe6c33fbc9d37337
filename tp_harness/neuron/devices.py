"""Which Neuron devices this machine has and who holds them, read from the system without any Neuron library.

Reading (`read_machine`) is apart from understanding (everything else is a pure function of recorded text). No torch.

Sources: AWS's sysfs and neuron-ls user guides. Every field may be absent: neuron-ls and the driver have grown over
time, containers show a part of /sys, and Kubernetes renames device files.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from .neuron_ls import Holder, Listed, number, numbers, parse_neuron_ls, run_neuron_ls

CORES_PER_DEVICE, MOST_CORES = 2, 8  # of Trn1 and Inf2; of Trn2
_DEVICE_NAME = re.compile(r"neuron(\d+)")
_MAJOR_LINE = re.compile(r"^\s*(\d+)\s+neuron\s*$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Roots:
    """Where the system's files are; tests name folders of recorded ones."""

    proc: Path = Path("/proc")
    sys: Path = Path("/sys")
    dev: Path = Path("/dev")


SYSTEM = Roots()


@dataclass(frozen=True, kw_only=True)
class DeviceFile:
    """A character device: its name, its numbers, and whether this user may read and write it."""

    name: str
    major: int
    minor: int
    accessible: bool


@dataclass(frozen=True, kw_only=True)
class NeuronDevice:
    """One device (chip): `index` is its physical number, whatever its file is called; `cores` have the runtime's."""

    index: int
    file: str
    cores: tuple[int, ...]
    accessible: bool
    kind: str = ""
    memory_bytes: int | None = None
    connected: tuple[int, ...] = ()
    holders: tuple[Holder, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What was found. `instance_type` is the product name, such as trn1.32xlarge; "" where not known."""

    instance_type: str = ""
    driver: str = ""
    devices: tuple[NeuronDevice, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def cores(self) -> tuple[int, ...]:
        """All NeuronCores, ascending."""
        return tuple(sorted(core for device in self.devices for core in device.cores))

    @property
    def busy(self) -> dict[int, tuple[Holder, ...]]:
        """By core, the processes that have its device open; they may use only one of its two cores."""
        return {core: device.holders for device in self.devices if device.holders for core in device.cores}


def neuron_major(proc_devices: str) -> int | None:
    """The driver's major number in the text of /proc/devices, or None where the driver is not loaded."""
    match = _MAJOR_LINE.search(proc_devices)
    return int(match[1]) if match else None


def neuron_files(proc_devices: str | None, files: tuple[DeviceFile, ...]) -> tuple[DeviceFile, ...]:
    """The Neuron devices among files, by physical index. The driver's major number tells them, since names may change.

    Without /proc/devices (None), names tell them.
    """
    if proc_devices is None:
        chosen = [file for file in files if _DEVICE_NAME.fullmatch(file.name)]
    else:
        major = neuron_major(proc_devices)
        chosen = [file for file in files if file.major == major]
    by_index = {file.minor: file for file in reversed(chosen)}  # a device may have two names: the first counts
    return tuple(by_index[index] for index in sorted(by_index))


def join_devices(
    files: tuple[DeviceFile, ...],
    listed: tuple[Listed, ...],
    sysfs: Mapping[int, Mapping[str, str]],
    open_files: Mapping[str, tuple[Holder, ...]],
) -> tuple[NeuronDevice, ...]:
    """One record per device file, joined from every source that has the device.

    Args:
        files: as `neuron_files` gives them.
        listed: neuron-ls, or nothing.
        sysfs: index -> relative path -> content.
        open_files: device file name -> processes that have it open.
    """
    by_index = {entry.index: entry for entry in listed}
    devices, next_core = [], 0
    for file in files:
        entry = by_index.get(file.minor, Listed(index=file.minor))
        facts = sysfs.get(file.minor, {})
        counts = (number(facts.get("core_count")), entry.core_count)
        count = next((count for count in counts if count and 0 < count <= MOST_CORES), CORES_PER_DEVICE)
        cores = entry.cores or tuple(range(next_core, next_core + count))
        next_core = cores[-1] + 1
        holders = {holder.pid: holder for holder in (*entry.holders, *open_files.get(file.name, ()))}
        devices.append(
            NeuronDevice(
                index=file.minor,
                file=file.name,
                cores=cores,
                accessible=file.accessible,
                kind=facts.get("info/architecture/device_name", ""),
                memory_bytes=entry.memory_bytes,
                connected=entry.connected or numbers(facts.get("connected_devices", "").replace(",", " ").split()),
                holders=tuple(holders[pid] for pid in sorted(holders)),
            )
        )
    return tuple(devices)


def on_neuron(environment: Mapping[str, str], roots: Roots = SYSTEM) -> bool:
    """Whether modules are to run on NeuronCores: there are some, and PJRT_DEVICE=CPU does not say otherwise."""
    if environment.get("PJRT_DEVICE") == "CPU":
        return False
    return bool(neuron_files(read_text(roots.proc / "devices"), tuple(device_files(roots.dev))))


def read_machine(roots: Roots = SYSTEM, *, neuron_ls: Callable[[], str | None] = run_neuron_ls) -> Machine:
    """Read everything; what cannot be read becomes one of the machine's notes, never an exception.

    Args:
        roots: where the system's files are.
        neuron_ls: gives the tool's JSON, or None where there is no tool; it is asked only if there is a device.
    """
    notes: list[str] = []
    proc_devices = read_text(roots.proc / "devices")
    all_files = tuple(device_files(roots.dev))
    files = neuron_files(proc_devices, all_files)
    named = [file.name for file in all_files if _DEVICE_NAME.fullmatch(file.name)]
    if named and not files:
        notes.append(f"{roots.dev}/{named[0]} exists but the Neuron driver is not loaded: `sudo modprobe neuron`")
    listed: tuple[Listed, ...] = ()
    open_files: dict[str, tuple[Holder, ...]] = {}
    if files:
        listed = _ask_neuron_ls(neuron_ls, notes)
        open_files = holders_of({f"{roots.dev}/{file.name}": file.name for file in files}, roots.proc, notes)
    sysfs = {file.minor: _read_sysfs(roots.sys, file.minor) for file in files}
    return Machine(
        instance_type=(read_text(roots.sys / "devices/virtual/dmi/id/product_name") or "").strip(),
        driver=(read_text(roots.sys / "module/neuron/version") or "").strip(),
        devices=join_devices(files, listed, sysfs, open_files),
        notes=tuple(notes),
    )


def device_files(dev: Path) -> Iterator[DeviceFile]:
    """Every character device directly in the folder, by name."""
    with contextlib.suppress(OSError):
        for entry in sorted(os.scandir(dev), key=lambda entry: entry.name):
            with contextlib.suppress(OSError):
                status = entry.stat()
                if stat.S_ISCHR(status.st_mode):
                    numbers = {"major": os.major(status.st_rdev), "minor": os.minor(status.st_rdev)}
                    accessible = os.access(entry.path, os.R_OK | os.W_OK)
                    yield DeviceFile(name=entry.name, accessible=accessible, **numbers)


def holders_of(paths: Mapping[str, str], proc: Path, notes: list[str]) -> dict[str, tuple[Holder, ...]]:
    """By device file name, the processes that have it open, as far as this user may see."""
    found: dict[str, dict[int, Holder]] = {}
    hidden = 0
    for folder in proc.glob("[0-9]*"):
        try:
            targets = {os.readlink(link) for link in (folder / "fd").iterdir()}
        except PermissionError:
            hidden += 1
            continue
        except OSError:  # it ended meanwhile
            continue
        for path in targets & paths.keys():
            command = (read_text(folder / "cmdline") or "").replace("\0", " ").strip()
            found.setdefault(paths[path], {})[int(folder.name)] = Holder(pid=int(folder.name), command=command)
    if hidden:
        notes.append(f"{hidden} processes of other users could not be looked into; run as root to see which hold cores")
    return {name: tuple(holders.values()) for name, holders in found.items()}


def _ask_neuron_ls(neuron_ls: Callable[[], str | None], notes: list[str]) -> tuple[Listed, ...]:
    try:
        text = neuron_ls()
        return () if text is None else parse_neuron_ls(text)
    except ValueError as error:
        notes.append(str(error))
        return ()


def _read_sysfs(sys: Path, index: int) -> dict[str, str]:
    folder = sys / "devices/virtual/neuron_device" / f"neuron{index}"
    names = ("core_count", "connected_devices", "info/architecture/device_name")
    texts = {name: read_text(folder / name) for name in names}
    return {name: text.strip() for name, text in texts.items() if text is not None}


def read_text(path: Path) -> str | None:
    """The file's text, or None where it is missing or may not be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
