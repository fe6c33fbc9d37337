"""Machines as the doctor finds them: a laptop, a healthy trn1.32xlarge, and changes to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tp_harness.doctor.facts import Facts
from tp_harness.neuron.devices import Machine, NeuronDevice
from tp_harness.neuron.neuron_ls import Holder
from tp_harness.neuron.sdk_packages import RELEASES, Package


def packages(**versions: str) -> dict[str, Package]:
    return {
        name.replace("_", "-"): Package(name=name.replace("_", "-"), version=version)
        for name, version in versions.items()
    }


def release(name: str) -> dict[str, Package]:
    """The Python packages of an SDK release, with the local suffix AWS's wheels have."""
    [found] = [release for release in RELEASES if release.name == name]
    pins = {key: pins[0] for key, pins in found.versions.items() if not key.startswith("aws-")}
    return {key: Package(name=key, version=f"{pin.replace('*', '1')}+ab12") for key, pin in pins.items()}


def system(name: str) -> dict[str, Package]:
    [found] = [release for release in RELEASES if release.name == name]
    return {
        key: Package(name=key, version=f"{pins[0]}-17e3")
        for key, pins in found.versions.items()
        if key.startswith("aws-")
    }


DEVICES = tuple(NeuronDevice(index=i, file=f"neuron{i}", cores=(2 * i, 2 * i + 1), accessible=True) for i in range(16))
HOLDER = Holder(pid=42, command="python a.py")
TRN1 = Machine(instance_type="trn1.32xlarge", driver="2.29.0.0", devices=DEVICES)
LAPTOP = Facts(machine=Machine(), python="3.11.7", cpus=8, libc="glibc 2.39", packages=packages(torch="2.13.0+cpu"))
HEALTHY = Facts(
    machine=TRN1,
    python="3.12.3",
    cpus=128,
    libc="glibc 2.39",
    packages={k: v for k, v in release("2.31.1").items() if k != "neuronx-distributed-inference"},
    system_packages=system("2.31.1"),
)


def with_packages(facts: Facts, added: Mapping[str, Package]) -> Facts:
    return replace(facts, packages={**facts.packages, **added})


def with_devices(facts: Facts, *devices: NeuronDevice, **fields: str) -> Facts:
    return replace(facts, machine=replace(facts.machine, devices=devices, **fields))
