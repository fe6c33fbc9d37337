"""What a run needs is estimated before any rank starts, and what does not fit is one sentence with what would."""

from __future__ import annotations

import errno
import re
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tp_harness.checkpoint.tiled_file import can_map
from tp_harness.config.options import Options, Resolved, resolve
from tp_harness.errors import UsageError
from tp_harness.prepare import memory_budget, prepare
from tp_harness.prepare.memory_budget import (
    GIB,
    LEAD_BYTES,
    RANK_BYTES,
    SHM,
    Free,
    available_memory,
    lacks_for_taps,
    memory_need,
    place_for,
)
from tp_harness.prepare.prepare import Preparation, prepare_one
from tp_harness.verification.api import verify

DISK = Path("/disk")


def free(memory: float | None, shm: float, disk: float) -> Free:
    """In GiB."""
    places = {SHM: int(shm * GIB), DISK: int(disk * GIB)}
    return Free(memory=None if memory is None else int(memory * GIB), places=places)


@pytest.fixture(scope="module")
def prepared() -> tuple[Resolved, Preparation]:
    """gpt-oss-20b, all components and degrees."""
    options = resolve(Options(model="gpt-oss-20b"))
    return options, prepare_one(options)


@pytest.mark.skipif(not can_map(), reason="this system cannot map tiles")
@pytest.mark.parametrize(
    ("there", "place"),
    [
        (free(24, 24, 70), SHM),
        (free(None, 24, 70), SHM),
        (free(24, 1, 70), DISK),  # a container's small /dev/shm
        (free(15, 24, 70), DISK),  # what lies in shared memory would be missing beside it
    ],
    ids=["shm", "not_known", "small_shm", "little_memory"],
)
def test_gpt_oss_20b_fits_with_all_its_layers(there: Free, place: Path, prepared: tuple[Resolved, Preparation]) -> None:
    options, prepare = prepared
    assert place_for(options, prepare.need, there) == place


@pytest.mark.skipif(not can_map(), reason="this system cannot map tiles")
@pytest.mark.parametrize(
    ("there", "copies", "text"),
    [
        (free(9, 9, 70), 0, "transformer at tp 32 needs about 12.5 GiB of memory, and 9.0 GiB are free; --seq 80 "),
        (free(14, 1, 0.9), 0, "the run's weights and outputs need 2.1 GiB, but /dev/shm has 1.0 GiB and /disk has 0.9 "
         "GiB free; --depth 3 would fit, or another folder with TMPDIR."),
        (free(40, 1, 70), 3, "transformer at tp 32 needs about 129.3 GiB of memory, and 40.0 GiB are free; --depth 4 "),
        (free(0.1, 9, 70), 0, "GiB of memory, and 0.1 GiB are free; choose other components with --component, or"),
    ],
    ids=["memory", "disk", "copies", "nothing_would"],
)  # fmt: skip
def test_what_does_not_fit_is_said_with_what_would(
    there: Free, copies: int, text: str, prepared: tuple[Resolved, Preparation]
) -> None:
    options, prepare = prepared
    with pytest.raises(UsageError) as raised:
        place_for(options, replace(prepare, copies=copies).need, there)
    assert text in str(raised.value)


def test_what_is_advised_fits(prepared: tuple[Resolved, Preparation]) -> None:
    there = free(12, 1, 1)
    with pytest.raises(UsageError, match=r"; --depth 8 --seq 80 would fit\.$"):
        place_for(prepared[0], prepared[1].need, there)
    smaller = resolve(Options(model="gpt-oss-20b", depth=8, seq=80))
    assert place_for(smaller, prepare_one(smaller).need, there) == SHM


def test_whole_files_are_counted_where_tiles_cannot_be_mapped(
    prepared: tuple[Resolved, Preparation], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "can_map", lambda: False)
    assert 38 < prepared[1].need(prepared[0]).folder / GIB < 41


def test_all_tensors_of_24_layers_are_too_much_and_of_two_are_not() -> None:
    options = resolve(Options(model="gpt-oss-20b"))
    text = r"^all tensors need about \d\d\.\d GiB of memory, and 20\.0 GiB are free; try fewer layers or tokens$"
    assert re.match(text, lacks_for_taps(options, "transformer", 32, 20 * GIB))
    assert not lacks_for_taps(resolve(Options(model="gpt-oss-20b", depth=2)), "transformer", 32, 20 * GIB)
    assert not lacks_for_taps(options, "mlp", 32, 20 * GIB)
    assert not lacks_for_taps(options, "transformer", 32, None)


def test_a_run_in_float64_needs_twice_the_memory_of_one_in_float32() -> None:
    """Nearly: the ranks' own memory and what the weights take stay."""

    def needs(*dtypes: str) -> float:
        options = resolve(Options(model="gpt-oss-20b", components=("attention",), dtypes=dtypes))
        memory, where = memory_need(options, copied=lambda _component: 0)
        assert where == "attention at tp 32"
        return memory - LEAD_BYTES - 32 * RANK_BYTES

    assert needs("float32") == needs("bfloat16") == needs("float32", "bfloat16")
    assert needs("float64") == needs("float64", "bfloat16") > 1.7 * needs("float32")
    whole = {"model": "gpt-oss-20b", "depth": 4}
    assert not lacks_for_taps(resolve(Options(**whole)), "transformer", 32, 20 * GIB)
    assert lacks_for_taps(resolve(Options(**whole, dtypes=("float64",))), "transformer", 32, 20 * GIB)


def test_a_container_s_limit_counts(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       24684092 kB\nMemAvailable:   2048 kB\n")
    assert available_memory(meminfo, tmp_path) == 2 << 20
    for name, text in (("max", "1048576\n"), ("current", "4096\n")):
        (tmp_path / f"memory.{name}").write_text(text)
    assert available_memory(meminfo, tmp_path) == (1 << 20) - 4096
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory(meminfo, tmp_path) == 2 << 20
    assert available_memory(tmp_path / "absent", tmp_path) is None


def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What a run says that ends before any rank starts; it leaves nothing. Other runs use /dev/shm meanwhile."""
    out = tmp_path / "out"
    monkeypatch.setattr(prepare, "SHM", tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(UsageError) as raised:
        verify(Options(components=("rmsnorm",), degrees=(2,), draws=1, backend="local", out=out))
    assert list(out.iterdir()) == [] and list(tmp_path.iterdir()) == [out]
    return str(raised.value)


def test_a_run_without_memory_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_budget, "available_memory", lambda: 1 << 20)
    text = " GiB of memory, and 0.0 GiB are free; choose other components with --component, or fewer --draws."
    assert refused(tmp_path, monkeypatch).endswith(text)


def test_a_disk_that_fills_up_meanwhile_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill_up(path: Path, *_arguments: Any) -> None:
        path.write_bytes(b"some")
        raise OSError(errno.ENOSPC, "No space left on device")

    for writer in ("write_tiles", "write_checkpoint"):
        monkeypatch.setattr(prepare, writer, fill_up)
    assert refused(tmp_path, monkeypatch) == (
        f"{tmp_path} is full: No space left on device while the weights were written there; make room, or choose "
        "another folder with TMPDIR."
    )
