"""The side that runs tests: hooks around each of them. What they do with cores is in core_holder.py.

Waiting for cores happens before the test's protocol begins, so it counts neither as the test's duration nor for its
timeout. Nothing is imported, and no file opened, for a project without marked tests.
"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ..errors import UsageError
from .marks import degree_of, first_mistake
from .report_properties import Properties, reason_of, status_of
from .settings import FOLDER, MISTAKE, WORKER_FOLDER, Settings

if TYPE_CHECKING:
    from .core_holder import Tenant


class Worker:
    """Hooks of a process that runs tests."""

    def __init__(self, config: pytest.Config, settings: Settings) -> None:
        self._settings = settings
        self._tenant: Tenant | None = None
        self._header: str | None = None
        self._mistake: str | None = None
        if "workerinput" in vars(config):
            config.stash[FOLDER] = Path(vars(config)["workerinput"][WORKER_FOLDER])
        if settings.neuron and not config.getoption("collectonly"):
            try:
                self._header = self._tenancy().bind()
            except UsageError as error:
                self._mistake = str(error)  # said when tests are collected, which is when the controller listens

    def _tenancy(self) -> Tenant:
        if self._tenant is None:
            from .core_holder import Tenant  # noqa: PLC0415

            self._tenant = Tenant(self._settings)
        return self._tenant

    def pytest_report_header(self) -> str | None:
        """Say what was changed in this process."""
        return self._header

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Refuse what cannot run, before anything does.

        Raises:
            pytest.UsageError: in one sentence; a worker tells the controller, which raises it.
        """
        config = session.config
        mistake = self._mistake or first_mistake(session.items, self._settings, listing=config.getoption("collectonly"))
        if mistake and "workeroutput" in vars(config):
            vars(config)["workeroutput"][MISTAKE] = mistake
            pytest.exit(mistake, returncode=pytest.ExitCode.USAGE_ERROR)
        if mistake:
            raise pytest.UsageError(mistake)
        if any(degree_of(item) is not None for item in session.items):
            self._tenancy().expect(session.items)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """Wait for the test's cores first: outside of its duration and its timeout."""
        degree = degree_of(item)
        if degree is not None:
            Properties(item.user_properties).wanted(degree)
            if not _will_skip(item):
                self._tenancy().acquire(item, degree)
        try:
            return (yield)
        finally:
            self._release(item)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Fail a test that got no cores, in one sentence."""
        if degree_of(item) is not None:
            from .core_holder import refusal  # noqa: PLC0415

            if text := refusal(item):
                pytest.fail(text, pytrace=False)

    @pytest.hookimpl(tryfirst=True)
    def pytest_pyfunc_call(self, pyfuncitem: pytest.Function) -> bool | None:
        """Call a 1-core test in a child, where its process would keep the core from larger ones."""
        if self._tenant is None or not self._tenant.calls_in_child(pyfuncitem):
            return None
        from .core_holder import block_of  # noqa: PLC0415
        from .forked_call import call_in_child  # noqa: PLC0415

        call_in_child(pyfuncitem, block_of(pyfuncitem, "").env)
        return True

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """Let what a test starts have the test's cores."""
        if self._tenant is None:
            return (yield)
        with self._tenant.surroundings(item):
            return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """Give the cores back in time for the report of this phase to say when."""
        try:
            return (yield)
        finally:
            self._release(item)

    def _release(self, item: pytest.Item) -> None:
        if self._tenant is not None:
            self._tenant.release(item)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
        """Say how a marked test ended in the words of run.json."""
        report: pytest.TestReport = yield
        if call.excinfo and report.failed and degree_of(item) is not None:
            Properties(report.user_properties).failed(status_of(call.excinfo.value), reason_of(call.excinfo))
        return report

    def pytest_unconfigure(self) -> None:
        """Close the locks."""
        if self._tenant is not None:
            self._tenant.close()


def _will_skip(item: pytest.Item) -> bool:
    """Whether the test is certain to be skipped, so that it need not wait for cores first."""
    conditions = (mark.args[0] for mark in item.iter_markers("skipif") if mark.args)
    return item.get_closest_marker("skip") is not None or any(c for c in conditions if not isinstance(c, str))
