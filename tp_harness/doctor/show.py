"""The doctor's answer, for people and as JSON. Pure functions of facts and findings."""

from __future__ import annotations

import dataclasses
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ..neuron.devices import Machine
from ..neuron.sdk_packages import NEURON_PACKAGES, PYTHON_PACKAGES, RELEASES, SYSTEM_PACKAGES, Package
from ..version import __version__
from .facts import Facts
from .findings import Finding, exit_code

_COLOURS = {"danger": "bold red", "warning": "yellow", "note": "dim"}


def as_text(facts: Facts, found: tuple[Finding, ...]) -> RenderableType:
    """Machine, backends, versions beside the pins, variables, and what to do about it all."""
    lines = [Text.assemble(("machine: ", "bold"), machine_line(facts.machine, facts.cpus))]
    lines += [Text.assemble((f"{name}: ", "bold"), value) for name, value in facts.environment.items()]
    sentences = [Text.assemble((f"{finding.level}: ", _COLOURS[finding.level]), finding.text) for finding in found]
    return Group(*lines, _backends(facts), _versions(facts), *sentences)


def as_json(facts: Facts, found: tuple[Finding, ...]) -> dict[str, Any]:
    """The same, for programs."""
    machine = dataclasses.asdict(facts.machine)
    return {
        "tp_harness": __version__,
        "exit_code": exit_code(found),
        "findings": [dataclasses.asdict(finding) for finding in found],
        "machine": machine | {"cores": list(facts.machine.cores), "cpus": facts.cpus, "libc": facts.libc},
        "busy": {
            str(core): [dataclasses.asdict(holder) for holder in holders]
            for core, holders in facts.machine.busy.items()
        },
        "backends": {name: reason or "available" for name, reason in facts.backend_reasons.items()},
        "python": facts.python,
        "packages": {name: _as_json(package) for name, package in facts.packages.items()},
        "system_packages": {name: _as_json(package) for name, package in (facts.system_packages or {}).items()},
        "pins": {release.name: dict(release.versions) for release in RELEASES},
        "environment": dict(facts.environment),
    }


def machine_line(machine: Machine, cpus: int) -> str:
    """One line: instance, devices, cores, how many of them busy, driver, CPUs."""
    parts = [machine.instance_type] if machine.instance_type else []
    if machine.devices:
        kinds = sorted({device.kind for device in machine.devices if device.kind})
        what = f"{len(machine.devices)} Neuron devices" + (f" ({', '.join(kinds)})" if kinds else "")
        parts += [what, f"{len(machine.cores)} NeuronCores", f"{len(machine.busy)} of them on devices in use"]
        parts += [f"driver {machine.driver or 'of unknown version'}"]
    else:
        parts += ["no Neuron device"]
    return ", ".join([*parts, f"{cpus} CPUs"])


def _as_json(package: Package) -> dict[str, Any]:
    return {"version": package.version, "stub": package.stub, "sdk": list(package.releases)}


def _backends(facts: Facts) -> Table:
    table = Table(header_style="bold", pad_edge=False)
    table.add_column("backend")
    table.add_column("available")
    for name, reason in facts.backend_reasons.items():
        table.add_row(name, "yes" if reason is None else Text(f"no: {reason}", style="dim"))
    return table


def _versions(facts: Facts) -> Table:
    """What is installed, and where there is anything of Neuron's, beside what each SDK has; as wide as it must be."""
    installed = dict(facts.packages) | dict(facts.system_packages or {})
    neuron = facts.machine.devices or not installed.keys().isdisjoint((*NEURON_PACKAGES, *SYSTEM_PACKAGES))
    releases = RELEASES if neuron else ()
    table = Table(header_style="bold", box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for header in ("package", "installed", *(f"SDK {release.name}" for release in releases)):
        table.add_column(header)
    table.add_row("Python", facts.python, *(f"{release.python[0]} to {release.python[-1]}" for release in releases))
    for name in (*PYTHON_PACKAGES, *SYSTEM_PACKAGES) if neuron else installed:
        pins = [release.versions.get(name, ()) for release in releases]
        table.add_row(name, _installed(installed.get(name)), *(escape("\n".join(pin)) or "-" for pin in pins))
    table.width = Console(width=1000).measure(table).maximum  # a folded version cannot be copied
    return table


def _installed(package: Package | None) -> Text:
    if package is None:
        return Text("-", style="dim")
    if package.stub:
        return Text(f"{package.version} (placeholder)", style="yellow")
    return Text(package.version, style="green" if package.releases else "")
