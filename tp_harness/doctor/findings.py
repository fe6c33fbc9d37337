"""What the facts mean: pure judgements, each one sentence with the next step.

danger: a verdict reached like this would be about something else, or wrong; the exit code is 1.
warning: something will not run, or is not supported on Trn1.
note: worth knowing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from ..errors import UsageError
from ..neuron.compile_cache import cache_root
from ..neuron.environment import dangers, is_on, visible_cores
from ..neuron.sdk_packages import NEURON_PACKAGES, RELEASES, Package, public_version, version_numbers
from ..system.core_pool import names
from .facts import Facts

Level = Literal["danger", "warning", "note"]
NETWORK_FILESYSTEMS = ("nfs", "nfs4", "efs", "lustre", "fuse.s3fs", "cifs")
DEVICES_OF = {"trn1.2xlarge": 1, "trn1.32xlarge": 16, "trn1n.32xlarge": 16}
OPEN_FILES = 65536  # what AWS's troubleshooting guide sets for 32 workers

# Variables that change how something runs rather than what it computes.
_UNWISE = {
    "NEURON_FUSE_SOFTMAX": "replaces softmax by a fused lowering; unset it to verify the model as written",
    "NEURON_CUSTOM_SILU": "replaces SiLU by a custom lowering; unset it to verify the model as written",
    "XLA_DISABLE_FUNCTIONALIZATION": "makes torch.split wrong along dimension 1 (pytorch/xla#8640); unset it",
    "NXD_CPU_MODE": "makes neuronx-distributed's layers run on the CPU, also where there are NeuronCores",
}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing found: how bad, and a sentence."""

    level: Level
    text: str


def findings(facts: Facts) -> tuple[Finding, ...]:
    """Everything there is to say, the worst first."""
    found = [finding for judge in _JUDGES for finding in judge(facts)]
    order = ("danger", "warning", "note")
    return tuple(sorted(found, key=lambda finding: order.index(finding.level)))


def exit_code(found: tuple[Finding, ...]) -> int:
    """Exit code 1 when something is dangerous, else 0: a machine without Neuron devices is healthy for CPU work."""
    return int(any(finding.level == "danger" for finding in found))


def _environment(facts: Facts) -> Iterator[Finding]:
    env = facts.environment
    for sentence in dangers(env):
        yield Finding(level="danger", text=sentence)
    for name, effect in _UNWISE.items():
        if is_on(env.get(name, "")):
            yield Finding(level="warning", text=f"{name} is {env[name]!r}, which {effect}.")
    if env.get("NEURON_RT_NUM_CORES"):
        yield Finding(
            level="warning",
            text=f"NEURON_RT_NUM_CORES is {env['NEURON_RT_NUM_CORES']!r}: a process takes whichever cores are free, "
            "aligned or not; tp-harness sets NEURON_RT_VISIBLE_CORES for its jobs instead.",
        )
    target = env.get("NEURON_PLATFORM_TARGET_OVERRIDE", "trn1")
    if target.lower() != "trn1":
        yield Finding(
            level="warning",
            text=f"NEURON_PLATFORM_TARGET_OVERRIDE is {target!r}: what is compiled will not load on Trn1; unset it.",
        )
    if env.get("NEURON_LOGICAL_NC_CONFIG"):
        yield Finding(level="warning", text="NEURON_LOGICAL_NC_CONFIG is set; it means nothing before Trn2: unset it.")


def _cores(facts: Facts) -> Iterator[Finding]:
    machine = facts.machine
    for note in machine.notes:
        yield Finding(level="warning", text=f"{note}.")
    if not machine.devices:
        yield Finding(level="note", text="no Neuron device: ranks run on this machine's CPUs.")
        return
    expected = DEVICES_OF.get(machine.instance_type)
    if expected is None:
        known = ", ".join(DEVICES_OF)
        name = machine.instance_type or "of unknown type"
        yield Finding(level="warning", text=f"the instance is {name}; what is known here holds for {known}.")
    elif len(machine.devices) != expected:
        yield Finding(
            level="warning",
            text=f"{len(machine.devices)} of the {expected} Neuron devices of a {machine.instance_type} are there "
            "(all of them, if this is a container that was given a part).",
        )
    for device in machine.devices:
        if not device.accessible:
            yield Finding(
                level="warning",
                text=f"this user may not open /dev/{device.file}: join its group, or change the container's devices.",
            )
    for holder in dict.fromkeys(holder for device in machine.devices for holder in device.holders):
        cores = names(tuple(core for core, holders in sorted(machine.busy.items()) if holder in holders))
        yield Finding(
            level="warning",
            text=f"process {holder.pid} ({holder.command}) holds the devices of cores {cores}; a job there may fail "
            "with 'NeuronCore(s) not available' until it ends.",
        )
    yield from _visible(facts)


def _visible(facts: Facts) -> Iterator[Finding]:
    given = facts.environment.get("NEURON_RT_VISIBLE_CORES", "")
    try:
        beyond = [core for core in (visible_cores(given) if given else ()) if core not in facts.machine.cores]
    except UsageError as error:
        yield Finding(level="warning", text=str(error))
        return
    if beyond:
        yield Finding(
            level="warning",
            text=f"NEURON_RT_VISIBLE_CORES is {given!r}, but this machine has no core {beyond[0]}: 'Could not open "
            "the ndX' is what the runtime says to that.",
        )


def _packages(facts: Facts) -> Iterator[Finding]:
    for package in facts.packages.values():
        if package.unfit:
            yield Finding(level="warning", text=f"{package.unfit}.")
    torch, xla = facts.packages.get("torch"), facts.packages.get("torch-xla")
    if torch and xla and version_numbers(torch.version)[:2] != version_numbers(xla.version)[:2]:
        yield Finding(
            level="warning",
            text=f"torch {torch.version} and torch-xla {xla.version} do not fit: both must be of one minor version.",
        )
    if xla and facts.machine.devices and version_numbers(xla.version) >= (2, 10):
        yield Finding(
            level="warning",
            text=f"torch-xla {xla.version} belongs to the line for Trn2 and newer; Trn1 needs 2.9 with torch-neuronx.",
        )
    if xla and facts.libc.startswith("glibc") and version_numbers(facts.libc) < (2, 35):
        yield Finding(
            level="warning", text=f"{facts.libc} cannot load torch-xla {xla.version}, which needs 2.35 (Ubuntu 22.04)."
        )
    yield from _releases(facts)


def _releases(facts: Facts) -> Iterator[Finding]:
    """Whether the Neuron packages are of one release, and what that release means on Trn1."""
    real = [p for name, p in facts.packages.items() if name in NEURON_PACKAGES and not p.unfit]
    if not real:
        return
    common = [r for r in RELEASES if all(r.name in package.releases for package in real)]
    if not common:
        listed = "; ".join(f"{p.name} {p.version} ({_of(p)})" for p in real)
        yield Finding(
            level="warning",
            text=f"the Neuron packages are of no one SDK known to work on Trn1 "
            f"({', '.join(release.name for release in RELEASES)}): {listed}.",
        )
    for release in common:
        yield Finding(level="note", text=f"the Neuron packages are those of SDK {release.name}: {release.remark}.")
        if ".".join(facts.python.split(".")[:2]) not in release.python:
            allowed = ", ".join(release.python)
            yield Finding(level="warning", text=f"Python is {facts.python}; SDK {release.name} is built for {allowed}.")
    inference = facts.packages.get("neuronx-distributed-inference")
    if inference and not inference.stub and version_numbers(inference.version) >= (0, 9):
        yield Finding(
            level="warning",
            text=f"neuronx-distributed-inference {inference.version} no longer supports Trn1 (since SDK 2.29); 0.8 of "
            "SDK 2.28.1 does.",
        )


def _of(package: Package) -> str:
    return f"SDK {', '.join(package.releases)}" if package.releases else "none of them"


def _system(facts: Facts) -> Iterator[Finding]:
    """The driver and the runtime below Python; only where there are devices."""
    if not facts.machine.devices:
        return
    installed, loaded = facts.system_packages or {}, facts.machine.driver
    dkms, runtime = installed.get("aws-neuronx-dkms"), installed.get("aws-neuronx-runtime-lib")
    if facts.system_packages is not None and "aws-neuronx-collectives" not in installed:
        yield Finding(
            level="warning",
            text="aws-neuronx-collectives is not installed: every collective fails with 'Error opening libnccom.so'.",
        )
    if dkms and loaded and version_numbers(dkms.version)[:3] != version_numbers(loaded)[:3]:
        yield Finding(
            level="warning",
            text=f"the loaded driver is {loaded}, the installed one {dkms.version}: end every Neuron process, then "
            "`sudo rmmod neuron; sudo modprobe neuron`.",
        )
    driver = loaded or (dkms.version if dkms else "")
    if runtime and version_numbers(driver) >= (2, 29) and version_numbers(runtime.version) < (2, 33):
        yield Finding(
            level="warning",
            text=f"driver {driver} needs aws-neuronx-runtime-lib 2.33 or newer; {public_version(runtime.version)} is "
            "installed.",
        )
    if facts.open_files < OPEN_FILES:
        yield Finding(
            level="warning",
            text=f"a process may open {facts.open_files} files; 32 ranks may end in 'Too many open files': "
            f"`ulimit -n {OPEN_FILES}`.",
        )


def _cache(facts: Facts) -> Iterator[Finding]:
    """A compile cache on a network file system: its locks fail there."""
    folder = cache_root(facts.environment)
    kind = filesystem_of(str(folder), facts.mounts) if folder else ""
    if kind in NETWORK_FILESYSTEMS:
        yield Finding(
            level="warning",
            text=f"the compile cache {folder} lies on {kind}, where its locks fail (KeyError); choose a local folder.",
        )


def filesystem_of(path: str, mounts: str) -> str:
    """The file system type that holds an absolute path, from the text of /proc/mounts; "" if unknown."""
    fields = [line.split() for line in mounts.splitlines()]
    points = {words[1]: words[2] for words in fields if len(words) >= 3}
    holding = [point for point in points if path == point or path.startswith(point.rstrip("/") + "/")]
    return points[max(holding, key=len)] if holding else ""


_JUDGES: tuple[Callable[[Facts], Iterator[Finding]], ...] = (_environment, _cores, _packages, _system, _cache)
