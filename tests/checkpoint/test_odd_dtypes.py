"""Checkpoints of dtypes that torch does not compute with, or that safetensors lacks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tp_harness.case.seeds import generator
from tp_harness.checkpoint.checkpoint import (
    Checkpoint,
    TensorSpec,
    check_checkpoint,
    find_checkpoint,
    write_checkpoint,
    write_tiles,
)
from tp_harness.errors import UsageError
from tp_harness.parallel.placements import same_bits


def spec(name: str, *shape: int, dtype: torch.dtype = torch.float32) -> TensorSpec:
    return TensorSpec(name=name, shape=shape, dtype=dtype)


def checked(path: Path, *needed: TensorSpec) -> Checkpoint:
    """The checkpoint, after all that is done before a rank starts."""
    checkpoint = find_checkpoint(path)
    check_checkpoint(checkpoint, needed, None)
    return checkpoint


def test_a_dtype_that_the_format_lacks_is_stored_as_bytes(tmp_path: Path) -> None:
    specs = [spec("double", 2, 3, dtype=torch.complex128), spec("scalar", dtype=torch.complex128), spec("w", 4)]
    values = {s.name: torch.randn(s.shape, dtype=s.dtype, generator=generator(0, s.name)) for s in specs}
    write_checkpoint(tmp_path / "a.safetensors", specs, lambda s: values[s.name])
    write_tiles(tmp_path / "b.tiles", [replace(s, fixed=values[s.name]) for s in specs], lambda s: s.fixed, lambda _: 0)
    for read in (find_checkpoint(tmp_path / "a.safetensors"), Checkpoint([tmp_path / "b.tiles"])):
        assert all(same_bits(read.tensor(name), value) for name, value in values.items())
        assert (read.shape("double"), read.stored_as("double"), read.stored_as("w")) == (
            (2, 3),
            "torch.complex128",
            "F32",
        )
    conjugate = torch.tensor([1 + 2j, 3 - 1j]).conj()
    write_checkpoint(tmp_path / "c.safetensors", [spec("turns", 2, dtype=torch.complex64)], lambda _: conjugate)
    assert load_file(tmp_path / "c.safetensors")["turns"].tolist() == [1 - 2j, 3 + 1j]
    save_file({"a": torch.ones(2)}, tmp_path / "d.safetensors", metadata={"tp_harness.bytes": '{"a": "no_dtype"}'})
    with pytest.raises(UsageError, match=r"tp_harness\.bytes of its metadata names no dtype of torch's"):
        find_checkpoint(tmp_path / "d.safetensors")


def test_float8_and_complex_numbers_are_read_and_must_be_finite(tmp_path: Path) -> None:
    kinds = {"a": torch.float8_e4m3fn, "b": torch.float8_e8m0fnu, "c": torch.complex64}
    values = {name: torch.tensor([1.0, 2.0]).to(dtype) for name, dtype in kinds.items()}
    save_file(values, tmp_path / "1.safetensors")
    needed = [spec(name, 2, dtype=dtype) for name, dtype in kinds.items()]
    assert same_bits(checked(tmp_path, *needed).tensor("b"), values["b"])
    with pytest.raises(UsageError, match=r"tensor c is stored as C64; torch\.complex128 is needed"):
        checked(tmp_path, *needed[:2], spec("c", 2, dtype=torch.complex128))
    save_file(values | {"a": torch.tensor([1.0, torch.nan]).to(kinds["a"])}, tmp_path / "1.safetensors")
    with pytest.raises(UsageError, match=r"tensor a holds nan at \[1\]; weights must be finite"):
        checked(tmp_path, *needed)
