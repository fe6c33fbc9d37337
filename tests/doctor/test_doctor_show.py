"""What the doctor prints, that it agrees with the backends, and that it is quick because it imports nothing."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from machines import DEVICES, HEALTHY, HOLDER, LAPTOP, system, with_devices, with_packages
from rich.console import Console

from tp_harness.backends import BACKENDS
from tp_harness.doctor.facts import Facts, read_facts
from tp_harness.doctor.findings import findings
from tp_harness.doctor.show import as_json, as_text
from tp_harness.neuron.sdk_packages import Package


def test_the_doctor_and_the_backends_agree_about_this_machine() -> None:
    reasons = read_facts().backend_reasons
    assert set(reasons) == {backend.name for backend in BACKENDS}
    for backend in BACKENDS:
        assert (reasons[backend.name] is None) == (backend.available() is None), backend.name


def shown_in(width: int, facts: Facts) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(as_text(facts, findings(facts)), soft_wrap=True)
    return console.export_text()


@pytest.mark.parametrize("width", [40, 80, 120])
def test_the_table_shows_versions_beside_the_pins_whole_in_a_narrow_terminal_too(width: int) -> None:
    stub = Package(name="nki", version="0.0.1", stub=True)
    shown = shown_in(width, with_packages(HEALTHY, {"nki": stub}))
    for version in ("2.9.0.2.15.32035+ab12", "2.9.0.2.12.22436", "2.7.0.2.12.22436", "3.10 to 3.12", "2.28.7631.0"):
        assert version in shown
    assert "0.0.1 (placeholder)" in shown
    assert "trn1.32xlarge, 16 Neuron devices, 32 NeuronCores, 0 of them on devices in use, driver 2.29.0.0" in shown


def test_pins_are_shown_where_there_is_anything_to_compare_with_them() -> None:
    assert re.findall(r"^(\S+) +\d", shown_in(80, LAPTOP), flags=re.MULTILINE) == ["Python", "torch"]
    for facts in (
        with_packages(LAPTOP, {"nki": Package(name="nki", version="0.7.0")}),
        with_devices(LAPTOP, DEVICES[0]),
        replace(LAPTOP, system_packages=system("2.33.0")),
    ):
        assert "2.28.7631.0" in shown_in(80, facts)


def test_json_is_complete_and_plain() -> None:
    held = with_devices(HEALTHY, replace(DEVICES[0], holders=(HOLDER,)))
    value = json.loads(json.dumps(as_json(held, findings(held))))
    assert value["busy"] == {core: [{"pid": 42, "command": "python a.py"}] for core in ("0", "1")}
    assert value["packages"]["neuronx-cc"]["sdk"] == ["2.31.1"]
    assert value["backends"]["neuron"] == "available"
    assert (value["exit_code"], value["pins"]["2.28.1"]["nki"]) == (0, ["0.2.0"])


def test_the_command_imports_neither_torch_nor_torch_xla(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom tp_harness.cli import main\ncode = main(['doctor', '--json'])\n"
        "print(code, sorted({'torch', 'torch_xla', 'numpy'} & set(sys.modules)), file=sys.stderr)"
    )
    environment = {"PATH": "/usr/bin:/bin", "XLA_USE_BF16": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stderr == "1 []\n"
    assert json.loads(done.stdout)["findings"][0]["level"] == "danger"
