"""Signals and kills at every moment of a real run: it ends, says so, and leaves nothing but what it found."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from command import PATIENCE, Harness
from living import lives

# Each hook signals the main process when its moment, the last argument, has come.
HOOKS = """
import os
from tp_harness.launch import RankLauncher
from tp_harness.prepare import prepare
from tp_harness.results import run_record
from tp_harness.verification import degrees
def signal_at(moment, owner, name, when=lambda *a: True):
    original = getattr(owner, name)
    def hooked(*arguments, **options):
        if sys.argv[-1].endswith("/" + moment) and when(*arguments):
            os.kill(os.getpid(), signal.SIGTERM)
        if sys.argv[-1].endswith("/" + moment + "-after"):
            result = original(*arguments, **options)
            os.kill(os.getpid(), signal.SIGINT)
            return result
        return original(*arguments, **options)
    setattr(owner, name, hooked)
signal_at("preparation", prepare, "expect")
signal_at("start", RankLauncher, "start")
signal_at("gather", degrees, "read_outputs")
signal_at("write", Path, "replace", lambda path, *a: path.name == "run.json.part" and path.with_suffix("").exists())
signal_at("end", RankLauncher, "close")
close = RankLauncher.close
def close_under_fire(self):
    os.kill(os.getpid(), signal.SIGINT)  # a second Ctrl-C, while the first is being obeyed
    close(self)
    os.kill(os.getpid(), signal.SIGTERM)
RankLauncher.close = close_under_fire
"""
MOMENTS = ["preparation", "start", "start-after", "gather", "gather-after", "write", "end"]


@pytest.fixture
def harness(tmp_path: Path) -> Harness:
    return Harness(tmp_path)


def test_a_signal_at_any_moment_and_two_more_while_it_is_obeyed(harness: Harness) -> None:
    options = ["--component", "rmsnorm", "--tp", "2", "--draws", "1", "--dtype", "float32"]
    runs = [[*options, "--out", str(harness.out / moment)] for moment in MOMENTS]
    for moment, (code, text) in zip(MOMENTS, harness.run(*runs, patch=HOOKS), strict=True):
        word = "interrupted" if moment.endswith("-after") else "ended by SIGTERM"
        if moment == "end":  # the run had its results; the signal came from the close under fire
            word = "interrupted"
        assert (code, text) == (130, f"tp-harness: {word}; every rank was ended.\n"), moment
        (record,) = (harness.out / moment).glob("*/run.json*")  # and no half-written one beside it
        assert json.loads(record.read_text())["finished"] is False


# Found by every Python of the run: the first module of torch after its C++ library takes as long as one likes.
SLOW_IMPORT = """
import sys, time
from pathlib import Path
class Slow:
    @staticmethod
    def find_spec(name, *_):
        if name.startswith("torch.") and "torch._C" in sys.modules:
            Path("importing").touch()
            time.sleep(3600)
sys.meta_path.insert(0, Slow)
"""


def test_a_signal_while_torch_is_imported(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(SLOW_IMPORT)
    command = [sys.executable, "-m", "tp_harness", "verify", "--component", "rmsnorm", "--tp", "2", "--out", "out"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    run = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    end = time.monotonic() + PATIENCE
    while not (tmp_path / "importing").exists() and run.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    assert "libtorch" in Path(f"/proc/{run.pid}/maps").read_text()
    run.send_signal(signal.SIGTERM)
    _, errors = run.communicate(timeout=PATIENCE)
    assert (run.returncode, errors) == (130, "tp-harness: ended by SIGTERM; every rank was ended.\n")
    assert not list(tmp_path.rglob("*.json"))


def test_a_killed_run_leaves_nothing_but_its_results(harness: Harness) -> None:
    run = harness.start(["--case", f"{harness.cases}:SLEEPY", "--tp", "1,2", "--draws", "1", "--dtype", "float32"])
    asleep = harness.home / "asleep"
    end = time.monotonic() + PATIENCE
    while not asleep.exists() and run.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    (work,) = harness.shm.iterdir()
    assert list(work.glob("*.safetensors"))
    children = psutil.Process(run.pid).children(recursive=True)
    run.kill()
    run.communicate(timeout=PATIENCE)
    while harness.processes() and time.monotonic() < end:
        time.sleep(0.02)
    assert not [child for child in children if lives(child)]
    harness.nothing_is_left()
    assert harness.statuses() == [("own", 1, "float32", "PASS")]
