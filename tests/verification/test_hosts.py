"""Several hosts: targets shared out, results put together, and a link that is cut in the middle."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from tp_harness.errors import UsageError
from tp_harness.results.result import Result, Status
from tp_harness.results.run_record import RunRecord, open_record
from tp_harness.verification.hosts import Collector, Host, Publisher

PATIENCE = 300.0  # seconds until a test gives up; never the measure of a pass
SCRIPT = Path(__file__).parents[2] / "launch" / "tp_test.py"
ZERO, ONE, TWO = (Host(index=index, count=3, ranks=8) for index in range(3))


def result(component: str, status: Status = Status.PASS) -> Result:
    return Result(
        component=component,
        tp=8,
        backend="gloo",
        dtype="float32",
        layer=0,
        draws=1,
        seed=0,
        status=status,
        reason="",
    )


def new_record(folder: Path) -> RunRecord:
    return open_record(folder, command="", options={}, backend="gloo", blind_spots="")


def test_hosts_share_all_targets_and_none_twice() -> None:
    targets = tuple(("mlp", layer) for layer in range(7))
    shares = [host.share(targets) for host in (ZERO, ONE, TWO)]
    assert sorted(target for share in shares for target in share) == list(targets)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert TWO.share(targets[:2]) == ()


def environment(**changes: int) -> dict[str, str]:
    values = {"RANK": 9, "WORLD_SIZE": 16, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 8, "GROUP_RANK": 1} | changes
    return {name: str(value) for name, value in values.items()}


def test_a_host_is_what_torchrun_says() -> None:
    assert Host.of(environment()) == Host(index=1, count=2, ranks=8)
    for changes in ({"LOCAL_WORLD_SIZE": 6}, {"RANK": 7, "WORLD_SIZE": 12, "LOCAL_WORLD_SIZE": 4}):
        with pytest.raises(UsageError, match="the same --nproc-per-node is needed on every host"):
            Host.of(environment(**changes))


def test_results_travel_and_so_do_corrections_and_notes(tmp_path: Path) -> None:
    store = dist.HashStore()  # type: ignore[attr-defined]
    here, there = new_record(tmp_path / "0"), new_record(tmp_path / "1")
    host = replace(ZERO, count=2)
    here.add(result("rope"))
    publisher = Publisher(replace(ONE, count=2), store, there, PATIENCE)
    publisher.start()
    there.add(result("mlp", Status.MISMATCH))
    there.add(result("attention"))
    there.replace(0, replace(result("mlp", Status.MISMATCH), reason="explained"))
    there.notes.append("a note")
    assert publisher.finish()
    assert Collector(host, store, here, PATIENCE).collect() == ()
    assert [(r.component, r.reason) for r in here.results] == [("rope", ""), ("mlp", "explained"), ("attention", "")]
    assert here.notes == ["host 1: a note"]
    stored = json.loads(here.path.read_text())
    assert [r["component"] for r in stored["results"]] == ["rope", "mlp", "attention"]


def test_a_silent_host_is_lost_and_what_it_told_is_kept(tmp_path: Path) -> None:
    store = dist.HashStore()  # type: ignore[attr-defined]
    here, there = new_record(tmp_path / "0"), new_record(tmp_path / "1")
    publisher = Publisher(ONE, store, there, PATIENCE)
    there.add(result("mlp"))
    publisher._publish()  # and then never again
    assert Collector(ZERO, store, here, 0.5).collect() == (1, 2)
    assert [r.component for r in here.results] == ["mlp"]


def test_a_store_that_is_gone_is_noticed(tmp_path: Path) -> None:
    class Gone(dist.HashStore):  # type: ignore[misc, name-defined]
        def add(self, key: str, amount: int) -> int:
            raise RuntimeError("connection lost")

    publisher = Publisher(ONE, Gone(), new_record(tmp_path), PATIENCE)
    publisher.start()
    assert not publisher.finish()


def test_a_store_that_does_not_answer_is_lost_and_said_so_while_the_host_works(tmp_path: Path) -> None:
    """As behind a cut cable: nothing fails, nothing returns."""
    forever = threading.Event()

    class Silent(dist.HashStore):  # type: ignore[misc, name-defined]
        def add(self, key: str, amount: int) -> int:
            forever.wait()
            return 0

    told = threading.Event()
    publisher = Publisher(ONE, Silent(), new_record(tmp_path), 0.5)
    publisher.start()
    publisher.when_lost(told.set)
    assert told.wait(PATIENCE)
    assert publisher.lost and not publisher.finish()
    forever.set()


def test_a_run_is_not_finished_while_others_are_awaited(tmp_path: Path) -> None:
    record = new_record(tmp_path)
    record.awaited, record.finished = True, True
    record.save()
    assert json.loads(record.path.read_text())["finished"] is False
    record.awaited = False
    record.save()
    assert json.loads(record.path.read_text())["finished"] is True


def sh(command: str) -> None:
    subprocess.run(command, shell=True, check=True, capture_output=True)


@pytest.fixture
def namespaces() -> Iterator[tuple[str, str]]:
    """Two network namespaces joined by one cable, 10.77.0.1 and 10.77.0.2."""
    if os.getuid() or not shutil.which("ip"):
        pytest.skip("network namespaces need root and iproute2")
    names = (f"tph{os.getpid()}a", f"tph{os.getpid()}b")
    try:
        try:
            for name in names:
                sh(f"ip netns add {name} && ip -n {name} link set lo up")
            sh(f"ip link add eth7 netns {names[0]} type veth peer name eth7 netns {names[1]}")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
        for number, name in enumerate(names, start=1):
            sh(f"ip -n {name} addr add 10.77.0.{number}/24 dev eth7 && ip -n {name} link set eth7 up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


MEETING = {
    "static": ("--master-addr", "10.77.0.1", "--master-port", "29777"),
    "c10d": ("--rdzv-backend", "c10d", "--rdzv-endpoint", "10.77.0.1:29777"),
}


class Hosts:
    """Two torchruns, each in its namespace and folder."""

    def __init__(self, namespaces: tuple[str, str], home: Path, options: list[str], rendezvous: str = "static") -> None:
        self.homes = [home / str(index) for index in range(2)]
        self.runs = []
        for index, (namespace, folder) in enumerate(zip(namespaces, self.homes, strict=True)):
            folder.mkdir()
            torchrun = [
                *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "2"),
                *("--local-addr", f"10.77.0.{index + 1}", *MEETING[rendezvous]),
                *(("--node-rank", str(index)) if rendezvous == "static" else ("--rdzv-conf", f"is_host={1 - index}")),
            ]
            self.runs.append(
                subprocess.Popen(
                    ["ip", "netns", "exec", namespace, *torchrun, str(SCRIPT), *options],
                    cwd=folder,
                    stdout=(folder / "out").open("w"),
                    stderr=(folder / "err").open("w"),
                    env=os.environ | {"OMP_NUM_THREADS": "1"},
                    start_new_session=True,
                )
            )

    def record(self, index: int) -> dict[str, Any]:
        """The run.json of a host."""
        found = list(self.homes[index].glob("artifacts/*/run.json"))
        return json.loads(found[0].read_text()) if found else {"results": []}

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for it while the runs go on."""
        end = time.monotonic() + PATIENCE
        while not condition():
            texts = [(home / "err").read_text()[-2000:] for home in self.homes]
            assert time.monotonic() < end and not any(run.poll() for run in self.runs), f"{what}: {texts}"
            time.sleep(0.05)

    def end(self) -> None:
        """Kill what still runs."""
        for run in self.runs:
            if run.poll() is None:
                os.killpg(run.pid, 9)
            run.wait()


def cell(r: dict[str, Any]) -> tuple[str, int, str]:
    return r["component"], r["tp"], r["status"]


@pytest.mark.slow
def test_two_hosts_share_the_work_and_host_0_has_all_results(namespaces: tuple[str, str], tmp_path: Path) -> None:
    names = ("rmsnorm", "rope", "mlp", "unembedding")
    options = [word for name in names for word in ("--component", name)]
    hosts = Hosts(namespaces, tmp_path, [*options, "--draws", "1", "--dtype", "float32"])
    try:
        codes = [run.wait(PATIENCE) for run in hosts.runs]
        assert codes == [0, 0], [(home / "err").read_text()[-3000:] for home in hosts.homes]
        assert sorted(map(cell, hosts.record(0)["results"])) == sorted((name, 2, "PASS") for name in names)
        assert sorted(cell(r)[0] for r in hosts.record(1)["results"]) == ["rope", "unembedding"]
        assert hosts.record(0)["finished"] and hosts.record(0)["exit_code"] == 0
    finally:
        hosts.end()


# Found by every Python of the runs: a verdict takes three seconds, so that a link can be cut between two, and twelve on
# host 1, which is not done when it notices.
SLOWLY = """
import os, sys, threading, time
def slow_down():
    name = "tp_harness.verification.degrees"
    while name not in sys.modules or not hasattr(sys.modules[name], "judge"):
        time.sleep(0.01)
    degrees = sys.modules[name]
    judge = degrees.judge
    degrees.judge = lambda *arguments: (time.sleep(12 if os.environ["GROUP_RANK"] == "1" else 3), judge(*arguments))[1]
threading.Thread(target=slow_down, daemon=True).start()
"""


@pytest.mark.slow
@pytest.mark.parametrize("rendezvous", MEETING)
def test_a_link_cut_in_the_middle_ends_both_hosts_with_what_they_found(
    namespaces: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rendezvous: str
) -> None:
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / "sitecustomize.py").write_text(SLOWLY)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "slow"))
    names = ("rmsnorm", "rope", "mlp", "embedding", "attention", "unembedding")
    options = [word for name in names for word in ("--component", name)]
    options += ["--layer", "0", "--draws", "1", "--dtype", "float32", "--timeout", "20"]
    hosts = Hosts(namespaces, tmp_path, options, rendezvous)
    try:
        hosts.until(lambda: len(hosts.record(1)["results"]) >= 1, "a result on host 1")
        cut = time.monotonic()
        sh(f"ip -n {namespaces[0]} link set eth7 down")
        ends: dict[int, float] = {}
        while len(ends) < 2 and time.monotonic() < cut + PATIENCE:
            for index, run in enumerate(hosts.runs):
                if run.poll() is not None:
                    ends.setdefault(index, time.monotonic() - cut)
            time.sleep(0.05)
        codes = [run.poll() for run in hosts.runs]
        assert all(codes), codes
        errors = (hosts.homes[0] / "err").read_text()
        assert errors.count("tp_test: host 1 is not heard of any more") == 1, errors[-3000:]
        assert "exitcode  : 3" in errors
        here = hosts.record(0)
        own = {name for name in names[::2]}
        assert {cell(r) for r in here["results"]} >= {(name, 2, "PASS") for name in own}
        missing = {r["component"] for r in here["results"] if r["status"] == "MISSING"}
        assert missing and missing <= set(names[1::2])
        assert (here["finished"], here["exit_code"]) == (True, 3)
        there = hosts.record(1)
        assert there["results"] and not there["finished"], "host 1 keeps what it found, to go on with"
        errors = (hosts.homes[1] / "err").read_text()
        assert errors.count("tp_test: host 0 does not answer any more; what host 1 found is in ") == 1, errors[-3000:]
        print("seconds from the cut to the end of hosts 0 and 1:", *(f"{ends[index]:.0f}" for index in (0, 1)))
    finally:
        hosts.end()
