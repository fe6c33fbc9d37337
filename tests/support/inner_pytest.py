"""Running pytest on a project of its own, whose cores nobody else uses; and reading what it leaves."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tp_harness.pytest_plugin.results import TestResult
from tp_harness.results.from_json import from_json

FAST = "-p no:anyio -p no:hypothesispytest"  # plugins that take longer to load than the tests to run

# As if the machine had NeuronCores: a file stands for their device. Loaded with `-p fake_neuron`, by workers as well.
FAKE_NEURON = """
import os
from tp_harness.pytest_plugin import core_holder, settings
from tp_harness.system import core_pool
core_pool.SETTLE_SECONDS = 2.0
settings.find_neuron_cores = lambda: tuple(range(int(os.environ["FAKE_CORES"])))
core_holder.DEVICE = os.environ["FAKE_DEVICE"]
"""


@dataclass
class Project:
    """A folder with tests, run by a pytest inside this one."""

    pytester: pytest.Pytester

    def __post_init__(self) -> None:
        self.pytester.makeini(
            f"[pytest]\naddopts = -p no:cacheprovider {FAST} --neuron-locks={self.locks}\nxfail_strict = true"
        )

    @property
    def path(self) -> Path:
        return self.pytester.path

    @property
    def locks(self) -> Path:
        return self.path / "locks"

    def tests(self, text: str) -> None:
        self.pytester.makepyfile(test_it="import os, signal, time\nimport pytest\n" + text)

    def run(self, *options: str) -> pytest.RunResult:
        """In this process: the workers of `-n` would be of this one's."""
        return self.pytester.runpytest_inprocess(*options)

    def run_apart(self, *options: str) -> pytest.RunResult:
        """In a process of its own."""
        return self.pytester.runpytest_subprocess(*options, timeout=240)

    def fake_neuron(self, monkeypatch: pytest.MonkeyPatch, cores: int) -> None:
        """Have this many NeuronCores in every run with `-p fake_neuron`; `device` stands for /dev/neuron."""
        self.pytester.makepyfile(fake_neuron=FAKE_NEURON)
        self.pytester.syspathinsert()
        device = self.path / "device"
        device.touch()
        for name, value in {"FAKE_CORES": str(cores), "FAKE_DEVICE": str(device), "PYTHONPATH": str(self.path)}.items():
            monkeypatch.setenv(name, value)

    def record(self) -> dict[str, Any]:
        [path] = self.path.glob("artifacts/*/run.json")
        record: dict[str, Any] = json.loads(path.read_text())
        return record

    def results(self) -> list[TestResult]:
        return [from_json(TestResult, value) for value in self.record()["results"]]

    def statuses(self) -> dict[tuple[str, int], str]:
        """(test without its file, degree) -> status."""
        return {(r.test.partition("::")[2], r.tp): r.status.value for r in self.results()}


def said(result: pytest.RunResult) -> str:
    """All that a run printed."""
    return "\n".join((*result.outlines, *result.errlines))
