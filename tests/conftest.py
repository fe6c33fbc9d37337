"""What all tests share: how hypothesis draws examples, and a process group without other ranks.

Examples are the same in every run, so that what a run says is about the change that was made. New ones are looked for
by `pytest --hypothesis-profile search`.
"""

import compileall
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

settings.register_profile("same", deadline=None, derandomize=True)
settings.register_profile("search", deadline=None, print_blob=True)
settings.load_profile("same")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Tests start hundreds of programs: none compiles the package itself, even where Python writes no bytecode."""
    if not hasattr(session.config, "workerinput"):
        for folder in ("tp_harness", "kernels", "launch", "reference", "tests/support"):
            compileall.compile_dir(Path(__file__).parents[1] / folder, quiet=2)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """What several tests share is made by one worker, not by each."""
    if config.getvalue("dist") != "loadgroup":
        return None
    from units import ByFixture

    return ByFixture(config, log)


@pytest.fixture(autouse=True)
def files_of_cases_are_forgotten(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A test's files may have the names of another's."""
    yield
    if own_cases := sys.modules.get("tp_harness.prepare.own_cases"):
        own_cases._FOLDERS.clear()
    if case_file := sys.modules.get("tp_harness.case.case_file"):
        case_file.forget_files()
    base = str(tmp_path_factory.getbasetemp())
    sys.path[:] = [folder for folder in sys.path if not folder.startswith(base)]
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(base):
            del sys.modules[name]


@pytest.fixture
def rank_1_of_4() -> Iterator[None]:
    """torch.distributed as rank 1 of 4 without the others: calls are accepted and compute nothing."""
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=1, world_size=4, store=FakeStore())
    yield
    dist.destroy_process_group()
