"""What setup.cfg promises: every folder and file is in a wheel, `verify` needs the base install alone, extras fit."""

from __future__ import annotations

import re
import sys
from configparser import ConfigParser
from pathlib import Path

from sources import FOLDERS, ROOT, SOURCES

from tp_harness.neuron.sdk_packages import RELEASES, is_stub

SETUP = ConfigParser()
SETUP.read(ROOT / "setup.cfg")
EXTRAS = {name: lines.split("\n")[1:] for name, lines in SETUP["options.extras_require"].items()}
BROUGHT_BY = {"markupsafe": "jinja2"}
# What nothing else imports at its start.
NEEDED_BY_SOME = {"pytest_plugin": "pytest", "libraries.pytest_private": "pytest", "xla": "torch_xla"}


def names(requirements: list[str]) -> set[str]:
    """Of distributions, without their versions."""
    return {re.split(r"[<>=\[]", line)[0] for line in requirements}


def package(folder: Path) -> str:
    """The name under which a folder of the product is installed."""
    parts = folder.relative_to(ROOT).parts
    return ".".join(parts if parts[0] == "tp_harness" else ("tp_harness", *parts))


FILES = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file()]
CODE = {package(path.parent): path.parent for path in FILES if path.suffix == ".py"}


def test_a_wheel_holds_every_folder_of_code() -> None:
    assert set(CODE) == set(SETUP["options"]["packages"].split()), "setup.cfg lists every package by name"
    directories = dict(line.split(" = ") for line in SETUP["options"]["package_dir"].split("\n")[1:])
    assert directories == {package(ROOT / name): name for name in FOLDERS}


def test_a_wheel_holds_every_file_that_code_reads() -> None:
    patterns = {name: globs.split(", ") for name, globs in SETUP["options.package_data"].items()}
    held = {path for name, globs in patterns.items() for pattern in globs for path in CODE[name].glob(pattern)}
    assert held == {path for path in FILES if path.suffix not in (".py", ".pyc", ".md")}


def test_the_base_install_has_all_that_is_imported_and_nothing_of_the_extras() -> None:
    base = names(SETUP["options"]["install_requires"].split())
    assert not base & set().union(*(names(lines) for name, lines in EXTRAS.items() if name != "xla"))
    for name, source in SOURCES.items():
        outside = {imported.split(".")[0] for imported in source.imports(at_start=True)}
        needed = (NEEDED_BY_SOME.get(name), NEEDED_BY_SOME.get(name.partition(".")[0]))
        outside -= {*sys.stdlib_module_names, "tp_harness", *needed}
        assert {BROUGHT_BY.get(module, module) for module in outside} <= base, name


def test_the_neuron_extra_is_an_sdk_that_ships_all_of_it_and_no_placeholder_fits() -> None:
    pins = dict(line.split("==") for line in EXTRAS["neuron"])
    assert set(pins) == {"torch-neuronx", "neuronx-cc", "nki", "neuronx-distributed"}
    fitting = [r for r in RELEASES if all(r.has(name, version) for name, version in pins.items())]
    whole = [release for release in RELEASES if set(pins) <= set(release.versions)]
    assert fitting == [whole[-1]]
    assert not any(is_stub(name, version, has_code=True) for name, version in pins.items())


def test_the_xla_extra_is_the_pair_of_make_test_xla() -> None:
    pinned = dict(line.split("==") for line in (ROOT / "constraints-xla.txt").read_text().split() if "==" in line)
    assert {name: f"{version.rpartition('.')[0]}.*" for name, version in pinned.items()} == dict(
        line.split("==") for line in EXTRAS["xla"]
    )
