"""A process that somebody else started, in the environment of a rank: started anew, before anything has read it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tp_harness.errors import UsageError
from tp_harness.neuron.core_allocation import ENTERED, enter_environment, job_environment
from tp_harness.neuron.devices import Machine, NeuronDevice
from tp_harness.neuron.environment import neuron_environment

RANK = """
import json, os, sys
from tp_harness.neuron.core_allocation import enter_environment
from tp_harness.neuron.devices import Machine
print(os.getpid(), flush=True)
enter_environment(Machine(), 8, option="--nproc-per-node")
print(json.dumps([sys.argv[1:], sorted({"torch", "torch_xla"} & set(sys.modules)), dict(os.environ)]))
"""


def rank(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A process that enters the environment of one of 8 ranks, and prints what it then is."""
    script = folder / "rank.py"
    script.write_text(RANK)
    command = [sys.executable, "-u", str(script), "--case", "a b.py:C"]
    given = {"PATH": os.environ["PATH"], "LOCAL_RANK": "3", "WORLD_SIZE": "8", **environment}
    return subprocess.run(command, env=given, capture_output=True, text=True, timeout=120, check=False)


def test_it_starts_itself_anew_with_its_arguments_and_the_right_environment(tmp_path: Path) -> None:
    done = rank(tmp_path, NEURON_PJRT_WORLD_SIZE="2", NEURON_CC_FLAGS="-O1")
    assert done.returncode == 0, done.stderr
    first, second, found = done.stdout.splitlines()
    assert first == second, "torchrun knows its ranks by their process ids"
    arguments, modules, values = json.loads(found)
    assert (arguments, modules) == (["--case", "a b.py:C"], [])
    assert values[ENTERED] == "1" and values["LOCAL_RANK"] == "3"
    assert "NEURON_PJRT_WORLD_SIZE" not in values
    asked = {"NEURON_RT_VISIBLE_CORES": "0-7", "NEURON_CC_FLAGS": "-O1 --auto-cast=none --model-type=transformer"}
    asked |= {"PJRT_DEVICE": "NEURON", "NEURON_RT_ROOT_COMM_ID": "127.0.0.1:62182", "MALLOC_ARENA_MAX": "64"}
    assert asked.items() <= values.items()


def test_one_whose_environment_is_right_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    right = neuron_environment({"PATH": "/bin"}, first_core=8, degree=8)
    monkeypatch.setattr(os, "environ", dict(right))
    monkeypatch.setattr(os, "execve", lambda *_arguments: pytest.fail("started anew"))
    enter_environment(Machine(), 8, option="--nproc-per-node")


def test_what_sets_a_variable_at_every_start_is_told_and_not_tried_for_ever(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import os\nos.environ['NEURON_CC_FLAGS'] = '-O3'\n")
    done = rank(tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode == 1 and len(done.stdout.splitlines()) == 2
    assert "NEURON_CC_FLAGS is '-O3' where a rank needs '-O3 --auto-cast=none" in done.stderr
    assert "such as a sitecustomize.py, sets it; take it out there" in done.stderr


def test_a_process_that_has_imported_torch_xla_is_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_xla", sys)
    with pytest.raises(RuntimeError, match="has read the environment"):
        enter_environment(Machine(), 8, option="--nproc-per-node")


def test_the_option_named_is_the_one_that_the_degree_came_from() -> None:
    machine = Machine(devices=(NeuronDevice(index=0, file="neuron0", cores=(0, 1), accessible=True),))
    for degree, text in ((4, "tp_degree 4 is not one that AWS supports"), (8, "this machine has 2")):
        with pytest.raises(UsageError, match=rf"{text}.* Choose with --nproc-per-node\."):
            job_environment({}, machine, degree, option="--nproc-per-node")
        with pytest.raises(UsageError, match=r"Choose with --tp\."):
            job_environment({}, machine, degree)
