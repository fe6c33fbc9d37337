"""The oracle of a large module uses the cores that are idle, and no others."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest
import torch

from tp_harness.system import idle_cores
from tp_harness.system.idle_cores import LARGE_BYTES, MOST


def used(monkeypatch: pytest.MonkeyPatch, busy: list[float], allowed: set[int], weight_bytes: int = LARGE_BYTES) -> int:
    """Threads inside, on a machine whose cores are so many percent busy."""
    monkeypatch.setattr(psutil, "cpu_percent", lambda **_options: busy)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: allowed, raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with idle_cores.idle_cores(weight_bytes):
            inside = torch.get_num_threads()
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    return inside


@pytest.mark.parametrize(
    ("busy", "allowed", "expected"),
    [
        ([0, 3], {0, 1}, 2),
        ([0, 100], {0, 1}, 1),
        ([100, 100], {0, 1}, 1),
        ([50, 60, 40, 50], {0, 1, 2, 3}, 2),
        ([0] * 8, {2, 3, 4}, 3),  # as taskset or a container's cpuset has it
        ([0] * 128, set(range(128)), MOST),
    ],
)
def test_threads_are_as_many_as_idle_cores(
    busy: list[float], allowed: set[int], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert used(monkeypatch, busy, allowed) == expected


@pytest.mark.parametrize(("quota", "expected"), [("max 100000", 8), ("250000 100000", 2), ("50000 100000", 0), ("", 8)])
def test_a_container_s_share_of_the_cores_is_all_there_is(
    quota: str, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "cpu_percent", lambda **_options: [0] * 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)), raising=False)
    (tmp_path / "cpu.max").write_text(quota)
    assert idle_cores._idle(tmp_path / "cpu.max") == expected
    assert idle_cores._idle(tmp_path / "absent") == 8


def test_a_small_module_has_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    assert used(monkeypatch, [0, 0], {0, 1}, LARGE_BYTES - 1) == 1


def test_threads_are_given_back_after_an_error() -> None:
    before = torch.get_num_threads()
    with pytest.raises(ArithmeticError), idle_cores.idle_cores(LARGE_BYTES):
        raise ArithmeticError
    assert torch.get_num_threads() == before


def test_this_machine_has_no_more_idle_cores_than_cores() -> None:
    assert 0 <= idle_cores._idle() <= (os.cpu_count() or 1)
