"""Results of marked tests in run.json's form, and junit.xml made of them."""

from __future__ import annotations

import shlex
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest

from ..report.junit import add_status, clean, counts
from ..results.from_json import from_json
from ..results.result import Result, Status
from ..results.run_record import RunRecord, describe_environment
from ..system.core_pool import names
from .settings import Settings


@dataclass(frozen=True, kw_only=True)
class TestResult(Result):
    """A marked test, or one verdict of a `tp-harness verify` that it ran.

    The test held the cores [first_core, first_core + tp) from `acquired_s` to `released_s`, in seconds since the
    run began, after waiting `waited_s` for them; -1 where that is not known (its worker died).
    """

    __test__ = False  # pytest would take it for a class of tests

    test: str = ""
    first_core: int = -1
    acquired_s: float = -1.0
    released_s: float = -1.0
    waited_s: float = 0.0
    seconds: float = 0.0

    @property
    def cores(self) -> tuple[int, ...]:
        """The cores that the test held."""
        return tuple(range(self.first_core, self.first_core + self.tp)) if self.first_core >= 0 else ()


class Phases(Protocol):
    """What is known of a test when its last phase is over."""

    values: dict[str, Any]
    verdicts: list[dict[str, Any]]
    status: str
    reason: str
    seconds: float


def results_of(title: str, phases: Phases, *, begin: float) -> Iterator[TestResult]:
    """The verdicts that the test ran, or one result of the test itself; both where it failed although they passed.

    `begin` is when the run began, in seconds of the monotonic clock.
    """
    values = phases.values
    facts: dict[str, Any] = {
        "test": title,
        "first_core": values.get("first_core", -1),
        "waited_s": values.get("waited", 0.0),
        "seconds": round(phases.seconds, 4),
    }
    facts |= {f"{name}_s": round(values[name] - begin, 5) for name in ("acquired", "released") if name in values}
    verdicts = [from_json(Result, verdict) for verdict in phases.verdicts]
    for verdict in verdicts:
        fields = {name: value for name, value in vars(verdict).items() if not name.startswith("_")}
        yield TestResult(**(fields | facts))
    if verdicts and (phases.status == "PASS" or any(verdict.status.failed for verdict in verdicts)):
        return
    yield TestResult(
        component=title,
        tp=values["tp"],
        backend="pytest",
        dtype="",
        layer=0,
        draws=1,
        seed=0,
        status=Status(phases.status),
        reason=phases.reason or "the test passed",
        **facts,
    )


def open_record(folder: Path, config: pytest.Config, settings: Settings) -> RunRecord:
    """A record in the run's folder.

    Raises:
        OSError: the folder cannot be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kind = "neuron" if settings.neuron else "virtual"
    return RunRecord(
        folder=folder,
        command=shlex.join(["pytest", *config.invocation_params.args]),
        options={"cores": names(settings.cores), "pool": kind, "workers": len(config.getoption("tx", None) or ())},
        backend="pytest",
        blind_spots="a test sees what it asserts",
        environment=describe_environment(),
    )


def junit(results: Sequence[TestResult]) -> str:
    """JUnit's XML of the results: a case per test and degree, with its cores as properties."""
    suites = ET.Element("testsuites")
    suite = ET.SubElement(suites, "testsuite", {"name": "tp-harness", **counts(results)})
    for result in results:
        title = clean(f"{row(result)} tp {result.tp}")
        case = ET.SubElement(suite, "testcase", classname=clean(result.test), name=title, time=f"{result.seconds:.3f}")
        properties = ET.SubElement(case, "properties")
        for key, value in (("tp", result.tp), ("cores", names(result.cores)), ("waited_s", result.waited_s)):
            ET.SubElement(properties, "property", name=key, value=str(value))
        add_status(case, result)
    return ET.tostring(suites, encoding="unicode", xml_declaration=True) + "\n"


def row(result: TestResult) -> str:
    """The test, and the component where it is one of the verdicts that the test asked for."""
    if result.component == result.test:
        return result.test
    return f"{result.test}: {result.component} layer {result.layer} {result.dtype}"
