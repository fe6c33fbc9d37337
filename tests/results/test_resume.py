"""A run cut short goes on where it was, and two runs at once keep apart."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from command import PATIENCE, Harness

from tp_harness.system.scratch_dir import lock_folder

# The main process is killed while it writes the third result, half of which is on the disk then.
KILL_AT_THE_THIRD = """
import os, signal
write = Path.write_text
def cut(self, text, **options):
    if self.name == "run.json.part" and len(json.loads(text)["results"]) == 3:
        write(self, text[:-100], **options)
        os.kill(os.getpid(), signal.SIGKILL)
    return write(self, text, **options)
Path.write_text = cut
"""
TELL_JOBS = """
from tp_harness.ranks import job
write_job = job.Job.write
def tell(self):
    with open(os.environ["ASLEEP"], "a") as file:
        print(self.tp, *(task.key for task in self.tasks), file=file)
    return write_job(self)
import os
job.Job.write = tell
"""
ASKED = ["--component", "rmsnorm", "--component", "rope", "--tp", "2,1", "--draws", "1", "--seed", "5"]


def without_times(result: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in result.items() if key not in ("ranks", "log_dir", "timing")}
    return json.loads(json.dumps(kept))  # type: ignore[no-any-return]


def cut_short(harness: Harness, asked: list[str], *, patch: str) -> dict[str, Any]:
    """The record of a run that kills itself, when the kernel has given back all that it held, its lock above all."""
    harness.start(asked, patch=patch).communicate(timeout=PATIENCE)
    record = harness.record()
    end = time.monotonic() + PATIENCE
    while (lock := lock_folder(harness.out / record["run_id"])) is None or harness.processes():
        if lock is not None:
            os.close(lock)
        assert time.monotonic() < end, "it is still there"
        time.sleep(0.02)
    os.close(lock)
    return record


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    (tmp_path / "cut").mkdir()
    (tmp_path / "whole").mkdir()
    harness, whole = Harness(tmp_path / "cut"), Harness(tmp_path / "whole")
    first = cut_short(harness, [*ASKED, "--dtype", "float32"], patch=KILL_AT_THE_THIRD)
    assert (len(first["results"]), first["finished"]) == (2, False)
    folder = harness.out / first["run_id"]
    assert harness.code("--resume", str(folder), patch=TELL_JOBS) == 0
    (job,) = (harness.home / "asleep").read_text().splitlines()
    assert job.startswith("1 rmsnorm.0.d0 rope.0.d0"), "and perhaps a control; nothing at tp 2"
    record = harness.record()
    assert record["results"][:2] == first["results"]
    assert (record["finished"], record["exit_code"], record["command"]) == (True, 0, first["command"])
    assert record["notes"][0].startswith("resumed after 2 results, cut short after ")
    assert not list(folder.glob("*.part"))
    assert whole.code(*ASKED, "--dtype", "float32") == 0
    assert [*map(without_times, record["results"])] == [*map(without_times, whole.record()["results"])]
    assert record["controls"] == whole.record()["controls"]
    [(code, text)] = harness.run(["--resume", str(folder)])
    assert (code, text) == (
        2,
        f"tp-harness: the run in {folder} has finished, with exit code 0 and 4 results; there is nothing to resume.\n",
    )


KILL_BEFORE_THE_CONTROL = """
import os, signal
from tp_harness.verification.negative_control import ControlRun
def settle(self, result):
    os.kill(os.getpid(), signal.SIGKILL)
ControlRun.settle = settle
"""


def test_a_degree_that_lacks_its_control_gets_it(tmp_path: Path) -> None:
    """Its results are all there; without the control they would prove less than those of an uninterrupted run."""
    harness = Harness(tmp_path)
    options = ["--component", "rmsnorm", "--tp", "2", "--draws", "1", "--dtype", "float32"]
    first = cut_short(harness, options, patch=KILL_BEFORE_THE_CONTROL)
    assert (len(first["results"]), first["controls"]) == (1, [])
    assert harness.code("--resume", str(harness.out / first["run_id"])) == 0
    record = harness.record()
    assert record["results"] == first["results"]
    assert [(c["tp"], c["component"], c["rejected"]) for c in record["controls"]] == [(2, "rmsnorm", True)]


def test_two_runs_at_once_share_nothing(tmp_path: Path) -> None:
    harness = Harness(tmp_path)
    options = ["--component", "mlp", "--tp", "2", "--draws", "1", "--dtype", "float32"]
    runs = [harness.start([*options, "--seed", str(seed)]) for seed in (1, 2)]
    ends = [json.loads(run.communicate(timeout=PATIENCE)[0].splitlines()[-1]) for run in runs]
    assert ends == [[[0, ""]]] * 2
    records = [json.loads(path.read_text()) for path in harness.out.glob("*/run.json")]
    assert sorted(record["results"][0]["seed"] for record in records) == [1, 2]
    assert all(record["finished"] and len(record["results"]) == 1 for record in records)
    assert len({result["log_dir"] for record in records for result in record["results"]}) == 2
    harness.nothing_is_left()
