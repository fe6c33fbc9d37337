"""Everything the doctor reads, in one value; reading alone, no opinion."""

from __future__ import annotations

import os
import platform
import resource
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..neuron.availability import backend_reasons
from ..neuron.devices import SYSTEM, Machine, Roots, read_machine, read_text
from ..neuron.sdk_packages import DPKG_STATUS, Package, parse_dpkg_status, read_python_packages

_OURS = ("NEURON", "XLA_", "PJRT_", "NXD_", "CPU_NUM_DEVICES", "OMP_NUM_THREADS", "MALLOC_ARENA_MAX")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What was read.

    Args:
        machine: devices, cores and who holds them.
        python: its version.
        cpus: processors this process may use.
        libc: the C library and its version, such as "glibc 2.39".
        open_files: how many files a process may have open.
        packages: installed Python packages that matter here, by name.
        system_packages: AWS's Debian packages; None where there is no Debian package list.
        environment: the variables that Neuron, XLA or a rank reads.
        mounts: the text of /proc/mounts.
    """

    machine: Machine
    python: str
    cpus: int
    libc: str = ""
    open_files: int = 1 << 20
    packages: Mapping[str, Package] = field(default_factory=dict)
    system_packages: Mapping[str, Package] | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    mounts: str = ""

    @property
    def backend_reasons(self) -> dict[str, str | None]:
        """By backend, None where it can run here, or the reason why not."""
        return backend_reasons(self.machine, self.packages, self.environment)


def read_facts(roots: Roots = SYSTEM, *, dpkg_status: Path = DPKG_STATUS) -> Facts:
    """Read this machine.

    Args:
        roots: where /proc, /sys and /dev are.
        dpkg_status: Debian's list of installed packages.
    """
    text = read_text(dpkg_status)
    return Facts(
        machine=read_machine(roots),
        python=platform.python_version(),
        cpus=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        libc=" ".join(platform.libc_ver()).strip(),
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        packages=read_python_packages(),
        system_packages=None if text is None else parse_dpkg_status(text),
        environment={name: value for name, value in sorted(os.environ.items()) if name.startswith(_OURS)},
        mounts=read_text(roots.proc / "mounts") or "",
    )
