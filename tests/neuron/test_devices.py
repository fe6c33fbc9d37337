"""Neuron devices from recorded texts of /proc, /sys and neuron-ls, odd ones included."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tp_harness.neuron import neuron_ls
from tp_harness.neuron.devices import (
    DeviceFile,
    Machine,
    Roots,
    device_files,
    join_devices,
    neuron_files,
    neuron_major,
    read_machine,
)
from tp_harness.neuron.neuron_ls import Holder, parse_neuron_ls, run_neuron_ls

# /proc/devices of a trn1.32xlarge, shortened
PROC_DEVICES = """Character devices:
  1 mem
  5 /dev/tty
 10 misc
245 neuron
254 gpiochip

Block devices:
259 blkext
"""
# `neuron-ls -j` as the user guide has it, with the numbers of Trn1
LS = """[
    {
        "neuron_device": 0, "bdf": "10:1c.0", "cpu_affinity": "0-31,64-95", "numa_node": "0",
        "connected_to": [12, 3, 4, 1], "nc_count": 2, "memory_size": 34359738368, "neuroncore_ids": [0, 1],
        "neuron_processes": [
            {"pid": 113985, "command": "python train.py", "neuron_runtime_version": "2.33.10"}
        ]
    },
    {
        "neuron_device": 1, "bdf": "10:1d.0", "connected_to": [13, 0, 5, 2], "nc_count": 2,
        "memory_size": 34359738368, "neuroncore_ids": [2, 3], "neuron_processes": []
    }
]"""
# before 2.25: neither core ids nor affinities; before 2.14 no processes
OLD_LS = """[{"neuron_device": 0, "bdf": "00:1e.0", "connected_to": null, "nc_count": 2, "memory_size": 34359738368}]"""
HELD = Holder(pid=113985, command="python train.py")


def device(name: str, minor: int, major: int = 245, *, accessible: bool = True) -> DeviceFile:
    return DeviceFile(name=name, major=major, minor=minor, accessible=accessible)


def record(root: Path, *, neuron: bool = True, product: str = "trn1.2xlarge") -> Roots:
    """A machine's files. Its two devices are links to real ones of major 1, which its /proc/devices calls neuron."""
    roots = Roots(proc=root / "proc", sys=root / "sys", dev=root / "dev")
    for folder in (roots.proc / "123" / "fd", roots.proc / "self", roots.dev):
        folder.mkdir(parents=True)
    (roots.proc / "devices").write_text("Character devices:\n" + ("  1 neuron\n" if neuron else "  1 mem\n"))
    (roots.dev / "neuron0").symlink_to("/dev/null")  # minor 3
    (roots.dev / "neuron1").symlink_to("/dev/zero")  # minor 5
    (roots.proc / "123" / "fd" / "7").symlink_to(roots.dev / "neuron1")
    (roots.proc / "123" / "fd" / "8").symlink_to("/dev/pts/0")
    (roots.proc / "123" / "cmdline").write_text("python\0serve.py\0")
    texts = {
        "devices/virtual/dmi/id/product_name": f"{product}\n",
        "module/neuron/version": "2.29.0.0\n",
        "devices/virtual/neuron_device/neuron3/core_count": "2\n",
        "devices/virtual/neuron_device/neuron3/connected_devices": "12, 3, 4, 1\n",
        "devices/virtual/neuron_device/neuron3/info/architecture/device_name": "Trainium1\n",
    }
    for name, text in texts.items():
        (roots.sys / name).parent.mkdir(parents=True, exist_ok=True)
        (roots.sys / name).write_text(text)
    return roots


needs_devices = pytest.mark.skipif(not Path("/dev/zero").is_char_device(), reason="needs /dev/null and /dev/zero")


def test_the_driver_s_major_number() -> None:
    assert neuron_major(PROC_DEVICES) == 245
    assert neuron_major(PROC_DEVICES.replace("245 neuron\n", "245 neuron_monitor\n")) is None
    assert neuron_major("") is None


def test_devices_are_found_by_number_because_kubernetes_renames_them() -> None:
    files = (device("neuron0", 5), device("neuron1", 11), device("tty", 0, major=5), device("neuron7", 7, major=9))
    assert [file.minor for file in neuron_files(PROC_DEVICES, files)] == [5, 11]


def test_without_proc_devices_names_decide() -> None:
    files = (device("neuron1", 1), device("neuron0", 0), device("neuron0x", 3), device("null", 2))
    assert [file.name for file in neuron_files(None, files)] == ["neuron0", "neuron1"]


def test_one_device_under_two_names_counts_once() -> None:
    assert [file.name for file in neuron_files(PROC_DEVICES, (device("neuron0", 0), device("other", 0)))] == ["neuron0"]


def test_neuron_ls_of_today() -> None:
    first, second = parse_neuron_ls(LS)
    assert (first.index, first.cores, first.core_count) == (0, (0, 1), 2)
    assert first.connected == (12, 3, 4, 1)
    assert first.holders == (HELD,)
    assert (second.cores, second.holders) == ((2, 3), ())


def test_an_older_neuron_ls_omits_fields() -> None:
    [only] = parse_neuron_ls(OLD_LS)
    assert (only.cores, only.core_count, only.connected, only.holders) == ((), 2, (), ())
    [joined] = join_devices((device("neuron0", 0),), (only,), {}, {})
    assert joined.cores == (0, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "printed no JSON"),
        ("neuron-ls: command failed", "printed no JSON"),
        ("3", "no list of devices"),
        ("[1]", "no list of devices"),
        ('{"instance_type": "trn1"}', "no list of devices"),
    ],
)
def test_what_neuron_ls_never_says_is_told(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_neuron_ls(text)


names = ["neuron_device", "nc_count", "memory_size", "neuroncore_ids", "connected_to", "neuron_processes"]
values = st.sampled_from([None, True, -3, 0, 1, 99, 10**12, 1.5, float("inf"), "", "2", "x", [0, 1], [None], [{}]])
entries = st.dictionaries(st.sampled_from(names), values | st.lists(st.fixed_dictionaries({"pid": values}), max_size=2))


@settings(deadline=None)
@given(st.lists(entries, max_size=4))
def test_no_odd_field_of_neuron_ls_breaks_anything(devices: list[dict[str, object]]) -> None:
    listed = parse_neuron_ls(json.dumps(devices))
    assert len(listed) == len(devices)
    joined = join_devices((device("neuron0", 0), device("neuron1", 1)), listed, {}, {})
    assert all(entry.cores for entry in joined)


def test_every_source_adds_what_it_knows() -> None:
    sysfs = {1: {"core_count": "2", "info/architecture/device_name": "Trainium1", "connected_devices": "13, 0"}}
    open_files = {"neuron1": (Holder(pid=7, command="python"), HELD)}
    files = (device("neuron0", 0), device("neuron1", 1, accessible=False))
    zero, one = join_devices(files, parse_neuron_ls(LS)[:1], sysfs, open_files)
    assert (zero.cores, zero.memory_bytes, zero.holders) == ((0, 1), 34359738368, (HELD,))
    assert (one.cores, one.kind, one.connected, one.accessible) == ((2, 3), "Trainium1", (13, 0), False)
    assert [holder.pid for holder in one.holders] == [7, 113985]
    machine = Machine(devices=(zero, one))
    assert machine.cores == (0, 1, 2, 3)
    assert list(machine.busy) == [0, 1, 2, 3]
    assert list(Machine(devices=(zero,)).busy) == [0, 1]


@needs_devices
def test_a_recorded_machine(tmp_path: Path) -> None:
    machine = read_machine(record(tmp_path), neuron_ls=lambda: None)
    assert (machine.instance_type, machine.driver, machine.notes) == ("trn1.2xlarge", "2.29.0.0", ())
    first, second = machine.devices
    assert (first.index, first.file, first.cores, first.kind) == (3, "neuron0", (0, 1), "Trainium1")
    assert (first.connected, first.holders) == ((12, 3, 4, 1), ())
    assert (second.index, second.cores, second.holders) == (5, (2, 3), (Holder(pid=123, command="python serve.py"),))


@needs_devices
def test_a_device_file_without_its_driver_is_told(tmp_path: Path) -> None:
    machine = read_machine(record(tmp_path, neuron=False), neuron_ls=lambda: LS)
    assert machine.devices == ()
    assert "neuron0 exists but the Neuron driver is not loaded: `sudo modprobe neuron`" in machine.notes[0]


@needs_devices
def test_a_neuron_ls_that_fails_costs_a_note_only(tmp_path: Path) -> None:
    machine = read_machine(record(tmp_path), neuron_ls=lambda: "no such device")
    assert len(machine.devices) == 2
    assert machine.notes == ("neuron-ls printed no JSON (Expecting value at character 0)",)


@needs_devices
def test_processes_that_may_not_be_looked_into_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(path: Path) -> str:
        raise PermissionError(path)

    roots = record(tmp_path)
    monkeypatch.setattr(os, "readlink", forbidden)
    machine = read_machine(roots, neuron_ls=lambda: None)
    assert machine.notes[0].startswith("1 processes of other users could not be looked into")
    assert not machine.busy


def test_a_machine_without_anything_to_read(tmp_path: Path) -> None:
    machine = read_machine(Roots(proc=tmp_path / "p", sys=tmp_path / "s", dev=tmp_path / "d"))
    assert machine == Machine()


@needs_devices
def test_real_device_files_have_their_numbers() -> None:
    [null] = [file for file in device_files(Path("/dev")) if file.name == "null"]
    assert (null.major, null.minor, null.accessible) == (1, 3, True)


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("echo '[]'", "[]\n"),
        ("echo 'no driver' >&2; exit 1", "neuron-ls failed: no driver"),
        ("exit 3", "neuron-ls failed: exit code 3"),
        ("exec sleep 60", "neuron-ls did not answer within 0.5 s"),
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell")
def test_the_tool_is_run_and_given_up_on(
    script: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "neuron-ls"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    if "answer" not in expected:  # a shell may take as long as the tool is given
        monkeypatch.setattr(neuron_ls, "LS_SECONDS", 60.0)
    if expected.startswith("["):
        assert run_neuron_ls() == expected
    else:
        with pytest.raises(ValueError, match=expected):
            run_neuron_ls()
