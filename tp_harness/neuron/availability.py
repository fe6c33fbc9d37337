"""Which backends this machine can run, and why not, without importing any of them."""

from __future__ import annotations

from collections.abc import Mapping

from .devices import Machine, on_neuron, read_machine
from .sdk_packages import AWS_INDEX, Package, read_python_packages

HOW = "docs/trn1.md says how on Trn1, and `make test-xla` makes .venv-xla with it here"


def backend_reasons(
    machine: Machine, packages: Mapping[str, Package], environment: Mapping[str, str]
) -> dict[str, str | None]:
    """By backend, None if it can run here, or the reason why not."""
    no_torch = None if "torch" in packages else "torch is not installed"
    return {
        "gloo": no_torch,
        "local": no_torch,
        "xla": no_torch or xla_reason(packages),
        "neuron": no_torch or neuron_reason(machine, packages, environment),
    }


def automatic(environment: Mapping[str, str]) -> tuple[str, str]:
    """The backend that "auto" stands for here, and why this machine's Neuron devices are not used, "" if they are."""
    if not on_neuron(environment):
        return "gloo", ""
    reason = neuron_reason(read_machine(), read_python_packages(), environment)
    return ("gloo", reason) if reason else ("neuron", "")


def xla_reason(packages: Mapping[str, Package]) -> str | None:
    """Why torch-xla cannot run on this machine's CPUs; None if it can."""
    return None if "torch-xla" in packages else f"torch-xla is not installed; {HOW}"


def neuron_reason(machine: Machine, packages: Mapping[str, Package], environment: Mapping[str, str]) -> str | None:
    """Why ranks cannot run on NeuronCores; with PJRT_DEVICE=CPU, why that path cannot run; None if it can."""
    if "torch-xla" not in packages:
        return f"torch-xla is not installed; {HOW}"
    if environment.get("PJRT_DEVICE") == "CPU":
        return None
    return _device_reason(machine) or _package_reason(packages)


def _device_reason(machine: Machine) -> str | None:
    if not machine.devices:
        return "no Neuron device was found (PJRT_DEVICE=CPU tries the same path without one)"
    closed = [device.file for device in machine.devices if not device.accessible]
    return f"this user may not open /dev/{closed[0]}" if closed else None


def _package_reason(packages: Mapping[str, Package]) -> str | None:
    for name in ("torch-neuronx", "libneuronxla", "neuronx-cc"):
        if name not in packages:
            return f"{name} is not installed; it comes from {AWS_INDEX}"
        if packages[name].unfit:
            return packages[name].unfit
    return None
