"""Installed versions against the AWS Neuron SDK releases that run on Trn1.

Source: the SDK's release manifest (n2-manifest.json, 2.28.1 and 2.31.1), the Trn1 packages of its page "Release
content" (2.33.0), and its announcements. torch-neuronx names two packages: up to 2.9 it is built on torch-xla, from
2.13 on it is TorchNeuron, a device of torch's own for Trn2 and Trn3.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib import metadata
from pathlib import Path

DPKG_STATUS = Path("/var/lib/dpkg/status")

# Distribution name -> the module it brings, if one is worth a look.
PYTHON_PACKAGES = {
    "torch": "torch",
    "torch-xla": "torch_xla",
    "torch-neuronx": "torch_neuronx",
    "neuronx-cc": "neuronxcc",
    "libneuronxla": "libneuronxla",
    "neuronx-distributed": "neuronx_distributed",
    "neuronx-distributed-inference": "neuronx_distributed_inference",
    "nki": "nki",
}
NEURON_PACKAGES = tuple(PYTHON_PACKAGES)[2:]
SYSTEM_PACKAGES = ("aws-neuronx-dkms", "aws-neuronx-runtime-lib", "aws-neuronx-collectives", "aws-neuronx-tools")

AWS_INDEX = "AWS's Neuron package index (docs/trn1.md has the command)"
LAST_ON_XLA = "2.9.0.2.15.32035"  # of torch-neuronx

# What the public Python index has under these names: placeholders whose only advice is to use AWS's index.
# The last version seen there in November 2026; real ones are all newer.
STUBS = {
    "libneuronxla": (1, 0),
    "neuronx-cc": (1, 0),
    "neuronx-distributed": (0, 1),
    "neuronx-distributed-inference": (0, 1),
    "nki": (0, 0, 1),
    "torch-neuronx": (1, 0),
}


@dataclass(frozen=True, kw_only=True)
class Release:
    """One SDK release: package -> the versions it ships, or needs ("2.9.*" is any 2.9)."""

    name: str
    remark: str
    python: tuple[str, ...]
    versions: Mapping[str, tuple[str, ...]]

    def has(self, name: str, version: str) -> bool:
        """Whether that version of the package belongs to this release."""
        return any(fnmatchcase(public_version(version), pin) for pin in self.versions.get(name, ()))


RELEASES = (
    Release(
        name="2.28.1",
        remark="the last with NKI, NxD and NxD Inference all stated to work on Trn1",
        python=("3.10", "3.11", "3.12"),
        versions={
            "torch": ("2.9.*", "2.8.*", "2.7.*"),
            "torch-xla": ("2.9.*", "2.8.*", "2.7.*"),
            "torch-neuronx": ("2.9.0.2.12.22436", "2.8.0.2.12.22436", "2.7.0.2.12.22436"),
            "neuronx-cc": ("2.23.6484.0",),
            "libneuronxla": ("2.2.15515.0",),
            "neuronx-distributed": ("0.17.26814",),
            "neuronx-distributed-inference": ("0.8.16251",),
            "nki": ("0.2.0",),
            "aws-neuronx-dkms": ("2.26.10.0",),
            "aws-neuronx-runtime-lib": ("2.30.51.0",),
            "aws-neuronx-collectives": ("2.30.59.0",),
            "aws-neuronx-tools": ("2.28.23.0",),
        },
    ),
    Release(
        name="2.31.1",
        remark="the last with NxD; NxD Inference no longer supports Trn1 here",
        python=("3.11", "3.12", "3.13"),
        versions={
            "torch": ("2.9.*",),
            "torch-xla": ("2.9.*",),
            "torch-neuronx": (LAST_ON_XLA,),
            "neuronx-cc": ("2.26.6360.0",),
            "libneuronxla": ("2.2.17544.0", "3.0.3854.0"),
            "neuronx-distributed": ("0.19.28492",),
            "neuronx-distributed-inference": ("0.10.18399",),
            "nki": ("0.5.0",),
            "aws-neuronx-dkms": ("2.29.0.0",),
            "aws-neuronx-runtime-lib": ("2.33.10.0",),
            "aws-neuronx-collectives": ("2.33.10.0",),
            "aws-neuronx-tools": ("2.31.15.0",),
        },
    ),
    Release(
        name="2.33.0",
        remark="torch-neuronx is that of 2.31.1, and NxD is not part of it",
        python=("3.11", "3.12", "3.13"),  # the versions that this torch-neuronx was built for in 2.31.1
        versions={
            "torch": ("2.9.*",),
            "torch-xla": ("2.9.*",),
            "torch-neuronx": (LAST_ON_XLA,),
            "neuronx-cc": ("2.28.7631.0",),
            "libneuronxla": ("3.0.10135.0",),
            "nki": ("0.7.0",),
            "aws-neuronx-dkms": ("2.31.7.0",),
            "aws-neuronx-runtime-lib": ("2.35.30.0",),
            "aws-neuronx-collectives": ("2.35.43.0",),
            "aws-neuronx-tools": ("2.33.38.0",),
        },
    ),
)


@dataclass(frozen=True, kw_only=True)
class Package:
    """An installed package. A `stub` is a placeholder from the public index: it holds no code."""

    name: str
    version: str
    stub: bool = False

    @property
    def unfit(self) -> str | None:
        """Why nothing runs on Trn1 with it, and the next step: a placeholder, or TorchNeuron; None if it is neither."""
        if self.stub:
            return (
                f"{self.name} {self.version} is the public index's placeholder and holds no code; uninstall it and "
                f"install from {AWS_INDEX}"
            )
        if self.name == "torch-neuronx" and version_numbers(self.version)[:2] > version_numbers(LAST_ON_XLA)[:2]:
            return (
                f"torch-neuronx {self.version} is TorchNeuron, the native one, which runs on Trn2 and Trn3 alone; for "
                f"Trn1 install {LAST_ON_XLA}, the last that is built on torch-xla, from {AWS_INDEX}"
            )
        return None

    @property
    def releases(self) -> tuple[str, ...]:
        """The SDK releases that this version belongs to."""
        return tuple(release.name for release in RELEASES if release.has(self.name, self.version))


def read_python_packages() -> dict[str, Package]:
    """The installed ones of PYTHON_PACKAGES, from their metadata; nothing is imported."""
    found = {}
    for name, module in PYTHON_PACKAGES.items():
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        stub = is_stub(name, version, has_code=importlib.util.find_spec(module) is not None)
        found[name] = Package(name=name, version=version, stub=stub)
    return found


def is_stub(name: str, version: str, *, has_code: bool) -> bool:
    """Whether a package is the public index's placeholder: not newer than that, or without the module of its name."""
    newest = STUBS.get(name)
    return newest is not None and (not has_code or version_numbers(version)[: len(newest)] <= newest)


def parse_dpkg_status(text: str) -> dict[str, Package]:
    """The installed ones of SYSTEM_PACKAGES in the text of /var/lib/dpkg/status."""
    found = {}
    for paragraph in text.split("\n\n"):
        fields = dict(re.findall(r"^(Package|Status|Version): (.*)$", paragraph, re.MULTILINE))
        name = fields.get("Package", "")
        if name in SYSTEM_PACKAGES and fields.get("Status", "").endswith(" installed"):
            found[name] = Package(name=name, version=fields.get("Version", ""))
    return found


def public_version(version: str) -> str:
    """A version without AWS's suffix: 2.23.6484.0+3b612583 in wheels, 2.33.10.0-17e3d3a5b in Debian packages."""
    return re.split("[+-]", version.strip())[0]


def version_numbers(version: str) -> tuple[int, ...]:
    """The numbers of a version, without a local suffix: 2.9.0+cpu is (2, 9, 0)."""
    return tuple(int(piece) for piece in re.findall(r"\d+", public_version(version)))
