"""What travels with the reports of a test, from the worker that ran it to the process that collects."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

PREFIX = "tp_harness."


class Properties:
    """Writes and reads the properties of a test that travel with its reports, as (name, scalar) pairs.

    Times are in seconds of the monotonic clock, which all processes of a machine share.
    """

    def __init__(self, properties: list[tuple[str, object]]) -> None:
        self._properties = properties

    def _write(self, **values: object) -> None:
        self._properties.extend((PREFIX + name, value) for name, value in values.items())

    def wanted(self, degree: int) -> None:
        """Write that the test is marked, at this degree in ranks."""
        self._write(tp=degree)

    def acquired(self, first: int, moment: float, waited: float) -> None:
        """Write that the block from core `first` is the test's since `moment`, after `waited` seconds of waiting."""
        self._write(first_core=first, acquired=moment, waited=round(waited, 4))

    def released(self, moment: float) -> None:
        """Write the last moment, in seconds, at which the test could use its block."""
        self._write(released=moment)

    def failed(self, status: str, reason: str) -> None:
        """Write how a phase of the test failed: a word of result.Status, and one line."""
        self._write(status=status, reason=reason)

    def verdict(self, result: Mapping[str, Any]) -> None:
        """Write one result of a `tp-harness verify` that the test ran, as run.json has it."""
        self._write(verdict=json.dumps(result))

    def read(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The values by name, of each name the first, and the verdicts."""
        values: dict[str, Any] = {}
        verdicts = []
        for name, value in self._properties:
            if name == PREFIX + "verdict":
                verdicts.append(json.loads(str(value)))
            elif name.startswith(PREFIX):
                values.setdefault(name.removeprefix(PREFIX), value)
        return values, verdicts


def status_of(error: BaseException) -> str:
    """The word of result.Status for what a test raised; errors of a job, and of what compares outputs, know theirs."""
    known = getattr(error, "status", None)
    if isinstance(known, str):
        return known
    return "FAILED" if isinstance(error, (AssertionError, pytest.fail.Exception)) else "CRASH"


def reason_of(caught: pytest.ExceptionInfo[BaseException]) -> str:
    """What was raised, in one line; a failure that was told by another process brings it along."""
    known = getattr(caught.value, "reason", None)
    return known if isinstance(known, str) else caught.exconly().partition("\n")[0]
