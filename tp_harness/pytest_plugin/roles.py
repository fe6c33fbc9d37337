"""Which sides a pytest process plays: it runs tests, it collects what they found, or both.

Without pytest-xdist, or with `-n 0`, one process does both. With workers, each of them runs tests, and the controller
collects: it asks for no core and touches no device.
"""

from __future__ import annotations

import os

import pytest

from ..errors import UsageError
from .settings import Settings, settings_of


def register(config: pytest.Config) -> None:
    """Register the sides of this process as plugins of their own.

    Raises:
        pytest.UsageError: an option that cannot be, or an environment that would spoil a verdict on Neuron.
    """
    settings = settings_of(config)
    is_worker = hasattr(config, "workerinput")
    listing = config.getoption("collectonly")  # one process, even with -n
    has_workers = bool(config.getoption("tx", None)) and config.getoption("dist", "no") != "no"
    is_controller = has_workers and not is_worker and not listing
    if not is_worker and not listing:
        from .result_collector import Ledger  # noqa: PLC0415

        if settings.neuron:
            _check_neuron(settings, len(config.getoption("tx", None) or ()))
        config.pluginmanager.register(Ledger(config, settings), "tp-harness-ledger")
    if not is_controller:
        from .worker import Worker  # noqa: PLC0415

        config.pluginmanager.register(Worker(config, settings), "tp-harness-worker")


def _check_neuron(settings: Settings, workers: int) -> None:
    """Refuse here what every worker would refuse."""
    from .core_block import block_environment  # noqa: PLC0415

    cores = len(settings.cores)
    if workers > cores:
        raise pytest.UsageError(
            f"-n asks for {workers} workers, one per NeuronCore, but there are {cores}: -n {cores}."
        )
    try:
        block_environment(os.environ, settings.cores[0], 1, settings)
    except UsageError as error:
        raise pytest.UsageError(str(error)) from None
