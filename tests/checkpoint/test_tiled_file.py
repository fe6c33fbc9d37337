"""Weights that repeat are stored once and mapped again and again, with the bits of a whole file."""

from __future__ import annotations

import gc
import os
import tempfile
from pathlib import Path

import pytest
import torch

from tp_harness.checkpoint import tiled_file
from tp_harness.checkpoint.checkpoint import Checkpoint, TensorSpec, write_checkpoint, write_tiles
from tp_harness.checkpoint.tiled_file import HUGE_BYTES, can_map, open_tiles, use_huge_pages
from tp_harness.errors import UsageError
from tp_harness.parallel.placements import Shard, same_bits
from tp_harness.prepare.memory_budget import SHM
from tp_harness.prepare.random_weights import discriminating, period

pytestmark = pytest.mark.skipif(not can_map(), reason="this system cannot map tiles")

FIXED = torch.arange(3 * 2**20).view(3, -1)
SPECS = (
    TensorSpec(name="norm.scale", shape=(96,), dtype=torch.float32),
    TensorSpec(name="experts.weight", shape=(3, 1500, 700), dtype=torch.bfloat16),  # ends inside a page
    TensorSpec(name="wide.weight", shape=(1100, 2000), dtype=torch.float32),
    TensorSpec(name="scalar", shape=(), dtype=torch.bfloat16),
    TensorSpec(name="empty", shape=(0, 4), dtype=torch.bfloat16),
    TensorSpec(name="table", shape=(3, 2**20), dtype=torch.int64, fixed=FIXED),
)


def values(spec: TensorSpec) -> torch.Tensor:
    return spec.fixed if spec.fixed is not None else discriminating(spec.name, spec.shape, 3)


def tiles(folder: Path) -> Path:
    write_tiles(folder / "a.tiles", SPECS, values, period)
    return folder / "a.tiles"


def test_tiles_hold_the_bits_of_a_whole_file(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a.safetensors", SPECS, values)
    ours, whole = Checkpoint([tiles(tmp_path)]), Checkpoint([tmp_path / "a.safetensors"])
    assert ours.names == whole.names
    for spec in SPECS:
        tensor = ours.tensor(spec.name)
        assert same_bits(tensor, whole.tensor(spec.name)) and tensor.is_contiguous(), spec.name
        assert (ours.shape(spec.name), ours.stored_as(spec.name)) == (spec.shape, whole.stored_as(spec.name))
    stored = sum(spec.tile(period) * spec.dtype.itemsize for spec in SPECS)
    assert stored < (tmp_path / "a.tiles").stat().st_size < stored + HUGE_BYTES + 8192
    assert stored < sum(spec.bytes for spec in SPECS)


@pytest.mark.parametrize("name", ["experts.weight", "wide.weight"])
def test_tiles_are_huge_pages_where_the_kernel_gives_them(name: str) -> None:
    if not SHM.is_dir():
        pytest.skip(f"{SHM} is not there")
    with tempfile.TemporaryDirectory(dir=SHM) as folder:
        path = tiles(Path(folder))
        tensor = open_tiles(path).tensor(name)
        assert tensor.data_ptr() % HUGE_BYTES == 0
        if not use_huge_pages(path):
            pytest.skip("this kernel keeps shared memory in small pages")
        assert tensor.float().isfinite().all()
        assert huge_bytes_mapped(path)  # not of the whole: they may be split again where memory is short
        whole = discriminating(name, tuple(tensor.shape), 3).to(tensor.dtype)
        assert same_bits(tensor.flatten()[: len(whole)], whole)


def huge_bytes_mapped(path: Path) -> int:
    """Of a file's mappings into this process."""
    total, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            ours = line.endswith(str(path))
        elif ours and line.startswith("ShmemPmdMapped:"):
            total += int(line.split()[1]) * 1024
    return total


def test_a_kernel_without_huge_pages_is_none_the_worse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused: list[int] = []
    monkeypatch.setattr(tiled_file._libc, "madvise", lambda *_arguments: refused.append(1) or -1)
    tensor = open_tiles(tiles(tmp_path)).tensor("experts.weight")
    assert refused and not use_huge_pages(tmp_path / "a.tiles")
    assert same_bits(tensor.flatten()[: 2**20], values(SPECS[1]))


def test_a_shard_is_a_view_and_what_one_writes_no_other_sees(tmp_path: Path) -> None:
    path = tiles(tmp_path)
    weight = open_tiles(path).tensor("experts.weight")
    shard = Shard(1).shard(weight, 2, 3)
    assert shard.untyped_storage().data_ptr() == weight.untyped_storage().data_ptr()
    before = path.read_bytes()
    weight[0, 0, 0] = 7
    assert weight.flatten()[period(weight.shape)] != 7 and path.read_bytes() == before


def test_a_process_maps_a_file_once_and_gives_it_back(tmp_path: Path) -> None:
    path = tiles(tmp_path)
    one, two = open_tiles(path), open_tiles(path)
    assert one is two

    def mappings() -> int:
        return Path("/proc/self/maps").read_text().count(str(path))

    tensor, descriptors = one.tensor("experts.weight"), len(os.listdir("/proc/self/fd"))
    del one, two
    gc.collect()
    assert tensor.float().isfinite().all()  # the tensor keeps its pages
    assert mappings() == 4 and len(os.listdir("/proc/self/fd")) < descriptors
    del tensor
    gc.collect()
    assert mappings() == 0


@pytest.mark.parametrize("content", [b"", b"x" * 100, None], ids=["empty", "garbage", "absent"])
def test_what_is_no_file_of_tiles_is_one_sentence(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "a.tiles").write_bytes(content)
    with pytest.raises(UsageError, match=r"^cannot read the checkpoint file .*a\.tiles: "):
        open_tiles(tmp_path / "a.tiles")
