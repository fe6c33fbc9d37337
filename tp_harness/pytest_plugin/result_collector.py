"""The side that collects: one result per marked test, run.json after each of them, and the table at the end.

With workers this is the controller, which knows only what reports say. Tests without the mark leave no trace here.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from ..errors import UsageError
from .report_properties import Properties
from .settings import FOLDER, MISTAKE, WORKER_FOLDER, Settings, own_folder

if TYPE_CHECKING:
    from ..results.run_record import RunRecord
    from .results import TestResult

# A node id: test, its parameters, and the group that xdist's loadgroup appends.
_NODE = re.compile(r"(?P<test>[^[]*)(?:\[(?P<params>.*)\])?(?:@[^\]@]*)?")


@dataclass
class _Phases:
    """What the reports of one test have said so far."""

    values: dict[str, Any] = field(default_factory=dict)
    verdicts: list[dict[str, Any]] = field(default_factory=list)
    status: str = "PASS"
    reason: str = ""
    seconds: float = 0.0


class Ledger:
    """Hooks of the process that sees every report."""

    def __init__(self, config: pytest.Config, settings: Settings) -> None:
        self._config, self._settings = config, settings
        self._begin = time.monotonic()
        self._phases: dict[str, _Phases] = {}
        self._results: list[TestResult] = []
        self._record: RunRecord | None = None
        self._trouble = ""
        self.folder = config.stash[FOLDER] = own_folder(settings.out)

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Tell a new worker where the run's folder is."""
        node.workerinput[WORKER_FOLDER] = str(self.folder)

    @pytest.hookimpl(optionalhook=True, tryfirst=True)
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        """Raise the usage error that a worker found.

        Raises:
            pytest.UsageError: the same that a run without workers would have ended with.
        """
        mistake = getattr(node, "workeroutput", {}).get(MISTAKE)
        if mistake:
            raise pytest.UsageError(mistake)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note a phase of a marked test; with its last one, write its result."""
        values, verdicts = Properties(report.user_properties).read()
        degree = values.get("tp") or self._crashed_degree(report)
        if degree is None:
            return
        phases = self._phases.setdefault(report.nodeid, _Phases())
        phases.values |= values
        phases.values["tp"] = degree
        phases.verdicts = verdicts or phases.verdicts
        if report.when == "call":
            phases.seconds = report.duration
        if report.failed and phases.status == "PASS":
            phases.status = values.get("status", "CRASH")
            phases.reason = values.get("reason") or str(report.longrepr).strip().rpartition("\n")[2]
        if report.skipped:
            phases.status, phases.reason = "SKIPPED", _skip_reason(report)
        if report.when not in ("setup", "call"):
            self._write(report.nodeid, self._phases.pop(report.nodeid))

    @staticmethod
    def _crashed_degree(report: pytest.TestReport) -> int | None:
        """xdist itself reports a test whose worker died: the degree is in the test's id alone."""
        match = re.search(r"\btp(\d+)\b", report.nodeid.partition("[")[2])
        return int(match[1]) if match and report.when not in ("setup", "call", "teardown") else None

    def _write(self, nodeid: str, phases: _Phases) -> None:
        from .results import results_of  # noqa: PLC0415

        for result in results_of(title(nodeid), phases, begin=self._begin):
            self._results.append(result)
            with self._spared():
                self._open().add(result)

    def _open(self) -> RunRecord:
        """The record; its folder appears with the first result, so that other projects' runs leave none."""
        if self._record is None:
            from .results import open_record  # noqa: PLC0415

            self._record = open_record(self.folder, self._config, self._settings)
        return self._record

    @contextmanager
    def _spared(self) -> Iterator[None]:
        """Keep a folder that cannot be written to from ending the tests; the table at the end says it."""
        try:
            yield
        except (OSError, UsageError) as error:
            said = str(error) if isinstance(error, UsageError) else f"{error.filename}: {error.strerror}."
            self._trouble = f"run.json and junit.xml are not whole: {said} Choose another folder with --tp-out."

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, exitstatus: int) -> None:
        """Close run.json, finished unless pytest's exit code says that it broke off, and write junit.xml beside it."""
        if self._record is not None:
            from .results import junit  # noqa: PLC0415

            self._record.finished = exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
            with self._spared():
                self._record.save()
                (self.folder / "junit.xml").write_text(junit(self._results), encoding="utf-8")

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """The table that closes the run."""
        if self._results:
            from .terminal_summary import closing  # noqa: PLC0415

            workers = len(self._config.getoption("tx", None) or ()) or 1
            terminalreporter.section("tensor-parallel tests")
            for line in closing(self._results, self._settings, workers):
                terminalreporter.write_line(line)
            terminalreporter.write_line(self._trouble or str(self.folder / "run.json"))


def title(nodeid: str) -> str:
    """The node id without its degree, which has a field of its own."""
    match = _NODE.fullmatch(nodeid)
    if match is None:
        return nodeid
    others = re.sub(r"-?\btp\d+\b", "", match["params"] or "", count=1).strip("-")
    return f"{match['test']}[{others}]" if others else match["test"]


def _skip_reason(report: pytest.TestReport) -> str:
    if hasattr(report, "wasxfail"):
        return f"failed as expected: {report.wasxfail}"
    return str(report.longrepr[2]).removeprefix("Skipped: ") if isinstance(report.longrepr, tuple) else ""
