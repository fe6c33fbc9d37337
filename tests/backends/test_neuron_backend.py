"""Backend neuron: which cores a job gets, what its end says, and all but the device over PJRT_DEVICE=CPU."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from tp_harness.launch import LaunchOutcome
from tp_harness.launch.torchrun import TorchrunRanks

from tp_harness import backends
from tp_harness.backends.neuron import NeuronBackend, NeuronSession, with_advice
from tp_harness.errors import UsageError
from tp_harness.neuron import availability as doctor
from tp_harness.neuron.core_allocation import free_block
from tp_harness.neuron.devices import Machine, NeuronDevice
from tp_harness.neuron.neuron_ls import Holder

PATIENCE = 250  # seconds until a test gives up; never the measure of a pass
DEVICES = tuple(NeuronDevice(index=i, file=f"neuron{i}", cores=(2 * i, 2 * i + 1), accessible=True) for i in range(16))
HELD = tuple(replace(DEVICES[i], holders=(Holder(pid=42, command="python a.py"),)) for i in range(16))
needs_torch_xla = pytest.mark.skipif(
    importlib.util.find_spec("torch_xla") is None, reason="torch-xla is not installed; `make test-xla` has it"
)


@pytest.mark.parametrize(
    ("held", "visible", "degree", "first"),
    [
        ((), "", 1, 0),
        ((), "", 32, 0),
        ((0,), "", 1, 2),
        ((0,), "", 8, 8),
        ((0, 4, 8), "", 8, 24),
        ((), "8-15", 8, 8),
        ((), "10-31", 8, 16),
        ((5,), "10-13", 2, 12),
        ((), "3,5", 1, 3),
    ],
)
def test_a_job_gets_the_first_aligned_cores_that_are_free(
    held: tuple[int, ...], visible: str, degree: int, first: int
) -> None:
    machine = Machine(devices=tuple(HELD[i] if i in held else DEVICES[i] for i in range(16)))
    assert free_block(machine, visible, degree) == first


@pytest.mark.parametrize(
    ("held", "visible", "degree", "message"),
    [
        ((7,), "", 32, "every block of 32 NeuronCores has one in use: core 14 is held by process 42 \\(python a.py\\)"),
        ((), "4-11", 8, "needs 8 NeuronCores from a multiple of 8 on; NEURON_RT_VISIBLE_CORES is '4-11' on a machine"),
        ((), "all", 8, "cores and ranges are needed"),
    ],
)
def test_cores_that_are_not_to_be_had_are_told(held: tuple[int, ...], visible: str, degree: int, message: str) -> None:
    machine = Machine(devices=tuple(HELD[i] if i in held else DEVICES[i] for i in range(16)))
    with pytest.raises(UsageError, match=message):
        free_block(machine, visible, degree)


def test_a_small_instance_refuses_large_degrees_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NEURON_RT_VISIBLE_CORES", raising=False)
    session = NeuronSession(Machine(devices=DEVICES[:1]))
    assert session.environment(2)["NEURON_RT_VISIBLE_CORES"] == "0-1"
    with pytest.raises(UsageError, match="tp_degree 8 needs 8 NeuronCores; this machine has 2"):
        session.environment(8)


def test_a_container_with_a_part_of_the_devices_uses_their_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NEURON_RT_VISIBLE_CORES", raising=False)
    session = NeuronSession(Machine(devices=DEVICES[4:8]))
    assert session.environment(8)["NEURON_RT_VISIBLE_CORES"] == "8-15"
    with pytest.raises(UsageError, match="tp_degree 32 needs 32 NeuronCores; this machine has 8"):
        session.environment(32)


def test_the_degrees_are_checked_when_the_backend_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PJRT_DEVICE", "CPU")
    assert "no NeuronCore was touched" in NeuronBackend().blind_spots
    NeuronBackend().open((1, 2, 8, 32))
    with pytest.raises(UsageError, match="tp_degree 4 is not one that AWS supports on Trn1"):
        NeuronBackend().open((1, 4))
    monkeypatch.setenv("XLA_USE_BF16", "1")
    with pytest.raises(UsageError, match="XLA_USE_BF16 is '1'"):
        NeuronBackend().open((1,))


def outcome(kind: str, message: str, **fields: object) -> LaunchOutcome:
    return LaunchOutcome(ok=kind == "ok", kind=kind, message=message, size=2, **fields)  # type: ignore[arg-type]


def test_the_end_of_a_run_is_told_with_the_remedy_its_logs_call_for(tmp_path: Path) -> None:
    (tmp_path / "rank1.log").write_text("Failed to execute the model status=1003 message=Numerical Error\n")
    (tmp_path / "rank0.log").write_text("NCCL WARN Timeout waiting for RX (waited 120 sec) - retrying\n")
    crashed = with_advice(outcome("crash", "rank 1 of 2 failed", failed_rank=1), tmp_path)
    assert crashed.message.startswith("rank 1 of 2 failed; rank 1's log: the device computed a NaN (NRT status 1003)")
    assert "RX" not in crashed.message
    hung = with_advice(outcome("timeout", "the ranks did not finish"), tmp_path)
    assert "rank 0's log: some ranks waited for one that was still compiling" in hung.message


def test_a_run_that_ended_well_or_without_a_known_line_keeps_its_message(tmp_path: Path) -> None:
    (tmp_path / "rank0.log").write_text("Too many open files\n")
    for kind in ("ok", "stopped"):
        assert with_advice(outcome(kind, "as it was"), tmp_path).message == "as it was"
    (tmp_path / "rank0.log").write_text("Traceback: ValueError: no\n")
    assert with_advice(outcome("crash", "as it was"), tmp_path).message == "as it was"


def verify(folder: Path, *arguments: str) -> tuple[int, str, dict[str, object]]:
    """Exit code, standard error, and run.json of `tp-harness verify --backend neuron` without a device."""
    command = [sys.executable, "-m", "tp_harness", "verify", "--backend", "neuron", "--out", str(folder), *arguments]
    environment = os.environ | {"PJRT_DEVICE": "CPU", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)
    records = [json.loads(path.read_text()) for path in folder.glob("*/run.json")]
    return done.returncode, done.stderr, records[0] if records else {}


@needs_torch_xla
def test_processes_compare_their_graphs_before_any_of_them_runs(tmp_path: Path) -> None:
    running = TorchrunRanks.start(
        "graph_ranks",
        str(tmp_path),
        size=2,
        environment=os.environ | {"PJRT_DEVICE": "CPU", "PYTHONPATH": str(Path(__file__).parents[1] / "support")},
        work_dir=tmp_path,
        log_dir=tmp_path / "logs",
        timeout=PATIENCE,
    )
    end = time.monotonic() + PATIENCE
    while (ended := running.poll()) is None and time.monotonic() < end:
        time.sleep(0.02)
    assert ended is not None
    assert ended.ok, ended
    zero, one = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert zero["fingerprint"] == one["fingerprint"]
    assert (zero["same"], one["same"]) == ([0.0, 2.0, 4.0, 6.0], [2.0, 4.0, 6.0, 8.0])
    assert zero["finding"] == one["finding"]
    assert zero["finding"].startswith("rank-dependent graph: 2 ranks trace 2 ")
    assert "graph_ranks.py" in zero["finding"]
    assert "slice={[1:3]}` on rank 1" in zero["finding"]


@pytest.mark.parametrize(
    ("devices", "reason", "chosen"),
    [(True, None, "neuron"), (True, "libneuronxla is not installed", "gloo"), (False, "no matter", "gloo")],
)
def test_auto_is_neuron_where_neuroncores_can_be_used_and_else_says_why_not(
    devices: bool, reason: str | None, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "on_neuron", lambda _environment: devices)
    monkeypatch.setattr(doctor, "neuron_reason", lambda *_facts: reason)
    monkeypatch.setattr(NeuronBackend, "available", lambda _self: None)
    backend = backends.choose_backend("auto")
    assert backend.name == chosen
    said = "this machine's NeuronCores were not used: libneuronxla is not installed" in backend.blind_spots
    assert said == (devices and reason is not None)


@needs_torch_xla
def test_a_component_passes_at_tp_1(tmp_path: Path) -> None:
    code, errors, record = verify(tmp_path, "--tp", "1", "--component", "attention", "--draws", "1", "--layer", "0")
    assert code == 0, errors
    [ranks] = {tuple(rank["core"] for rank in result["ranks"]) for result in record["results"]}  # type: ignore[attr-defined]
    assert ranks == ("process 0 with PJRT_DEVICE=CPU",)
    assert "no NeuronCore was touched" in str(record["blind_spots"])


@needs_torch_xla
def test_without_a_device_every_process_is_a_world_of_its_own_and_that_is_noticed(tmp_path: Path) -> None:
    code, _, record = verify(tmp_path, "--tp", "2", "--component", "rmsnorm", "--dtype", "float32")
    assert code == 3
    [result] = record["results"]  # type: ignore[misc]
    assert result["status"] == "CRASH"
    assert "2 ranks were started, but torch-xla sees 1" in result["reason"]
    assert "--backend xla has all ranks in one" in result["reason"]
