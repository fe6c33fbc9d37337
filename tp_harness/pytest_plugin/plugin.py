"""Options, marker, fixtures and hooks; what they do is in the modules beside this one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .core_block import CoreBlock
    from .tp_group import TpGroup

MARKER = "tp(*degrees): run the test once per degree, holding that many neighbouring cores of the pool"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the group "tp-harness" of options."""
    group = parser.getgroup("tp-harness", "tests that need several cores (tp-harness)")
    add = group.addoption
    add("--neuron-cores", type=int, metavar="N", help="Size of the virtual pool where there is no Neuron (default 32)")
    add("--neuron-wait", type=float, default=3600.0, metavar="SECONDS", help="Give up waiting for cores after this")
    add("--neuron-locks", metavar="DIR", help="Folder of the cores' locks; runs that name the same one share the cores")
    add("--neuron-fork", action="store_true", help="Call 1-core tests in forked children, as on Neuron beside larger")
    add("--tp-out", default="artifacts", metavar="DIR", help="Where the run's folder goes (default: artifacts)")


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker and the sides that this process plays. Before any test module can import torch_xla."""
    from . import roles  # noqa: PLC0415

    config.addinivalue_line("markers", MARKER)
    roles.register(config)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that is marked `tp` once per degree."""
    if metafunc.definition.get_closest_marker("tp"):
        from .marks import parametrize  # noqa: PLC0415

        parametrize(metafunc)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """Number of workers for `-n auto`: one per NeuronCore; None without Neuron, so that xdist decides."""
    from .settings import settings_of  # noqa: PLC0415

    settings = settings_of(config)
    return len(settings.cores) if settings.neuron else None


@pytest.fixture
def tp_degree(request: pytest.FixtureRequest) -> int:
    """The degree of this run of the test, a number of ranks, from its mark."""
    degree: int | None = getattr(request, "param", None)
    if degree is None:
        pytest.fail(_missing(request), pytrace=False)
    return degree


@pytest.fixture
def neuron_cores(request: pytest.FixtureRequest) -> CoreBlock:
    """The cores that this test holds: first, count, and the environment of a job on them."""
    from .core_holder import block_of  # noqa: PLC0415

    return block_of(request.node, _missing(request))


@pytest.fixture
def tp_group(request: pytest.FixtureRequest) -> Iterator[TpGroup]:
    """A job of `tp_degree` ranks on this test's cores: `run` a script under torchrun, or `verify` components."""
    from .core_holder import group_of  # noqa: PLC0415

    with group_of(request.node, _missing(request)) as group:
        yield group


def _missing(request: pytest.FixtureRequest) -> str:
    from .marks import missing_mark  # noqa: PLC0415

    return missing_mark(request.node.nodeid, str(request.fixturename))
