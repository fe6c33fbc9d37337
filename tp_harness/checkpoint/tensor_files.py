"""Tensor files, mapped: safetensors, and torch.save's with weights_only. Nothing in a file is ever run.

Sizes are checked against the file's before memory is taken. Not covered: torch.save's format before torch 1.6, which
cannot be mapped.
"""

from __future__ import annotations

import json
import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open

from ..errors import UsageError

TORCH_SUFFIXES = (".pt", ".pth", ".bin")
_MOST_INDEX = 1 << 26  # bytes of the pickle that says where tensors are; a large model has a few megabytes

TAGS = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.uint16: "U16",
    torch.uint32: "U32",
    torch.uint64: "U64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
    torch.float8_e8m0fnu: "F8_E8M0",
    torch.complex64: "C64",
}
AS_BYTES = "tp_harness.bytes"  # metadata: by name, the dtypes that safetensors lacks (complex128); stored as bytes


class TensorFile(Protocol):
    """Tensors by name, of any shape; each is a view of the mapped file."""

    names: tuple[str, ...]

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, without reading it."""

    def stored_as(self, name: str) -> str:
        """A tensor's dtype in safetensors' words: F32, BF16, ..."""

    def tensor(self, name: str) -> torch.Tensor:
        """The mapped tensor, in its `shape` and stored dtype; it must not be written to."""


def open_tensors(path: Path) -> TensorFile:
    """The tensors of a file; those named .pt, .pth or .bin are torch's, all others safetensors.

    Raises:
        UsageError: it cannot be read, is damaged, or holds anything but tensors.
    """
    return TorchFile(path) if path.suffix in TORCH_SUFFIXES else SafetensorsFile(path)


class SafetensorsFile:
    """A safetensors file. The library checks its header against the file's size."""

    def __init__(self, path: Path) -> None:
        try:
            self._file = safe_open(path, framework="pt")
            self.names = tuple(self._file.keys())
            self._as_bytes = stored_as_bytes(self._file.metadata())
        except (OSError, SafetensorError, ValueError) as error:
            raise UsageError(f"cannot read the checkpoint file {path}: {error}.") from None

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, from the header alone."""
        shape = tuple(self._file.get_slice(name).get_shape())
        return shape[:-1] if name in self._as_bytes else shape

    def stored_as(self, name: str) -> str:
        """A tensor's dtype in the header's own words, or torch's where those lack it."""
        return str(self._as_bytes.get(name) or self._file.get_slice(name).get_dtype())

    def tensor(self, name: str) -> torch.Tensor:
        """The mapped tensor, in its `shape` and stored dtype; it must not be written to."""
        tensor: torch.Tensor = self._file.get_tensor(name)
        return tensor.view(self._as_bytes[name])[..., 0] if name in self._as_bytes else tensor


def stored_as_bytes(metadata: Mapping[str, str] | None) -> dict[str, torch.dtype]:
    """The dtypes of a file's tensors that are stored as bytes, along a last dimension of their own.

    Raises:
        ValueError: the metadata names no dtype of torch's.
    """
    dtypes: dict[str, torch.dtype] = {}
    for name, dtype in json.loads((metadata or {}).get(AS_BYTES, "{}")).items():
        dtypes[name] = getattr(torch, dtype, None)  # type: ignore[assignment]
        if not isinstance(dtypes[name], torch.dtype):
            raise ValueError(f"{AS_BYTES} of its metadata names no dtype of torch's")
    return dtypes


class TorchFile:
    """A file of torch.save(state_dict), opened with weights_only=True and mapped."""

    def __init__(self, path: Path) -> None:
        parts = _part_sizes(path)
        try:
            content = torch.load(path, weights_only=True, mmap=True, map_location="cpu")
        except Exception as error:  # a hostile pickle can raise anything; none of its code was run
            raise _bad(path, f"it is damaged, or holds more than plain tensors ({type(error).__name__})") from None
        if not isinstance(content, dict):
            raise _bad(path, f"it holds a {type(content).__name__} instead of a state_dict")
        for name, tensor in content.items():
            if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
                raise _bad(path, f"its state_dict maps {name!r:.60} to a {type(tensor).__name__}")
            if tensor.layout is not torch.strided or tensor.device.type != "cpu" or not tensor.is_contiguous():
                raise _bad(path, f"{name} is not contiguous")
        storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in content.values()}
        if not Counter(storages.values()) <= Counter(parts):  # torch maps what the index claims, also beyond a part
            raise _bad(path, "its index claims tensors of other sizes than its parts")
        self._tensors = {name: tensor.detach() for name, tensor in content.items()}
        self.names = tuple(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape."""
        return tuple(self._tensors[name].shape)

    def stored_as(self, name: str) -> str:
        """A tensor's dtype in safetensors' words, or torch's where those lack it."""
        dtype = self._tensors[name].dtype
        return TAGS.get(dtype, str(dtype))

    def tensor(self, name: str) -> torch.Tensor:
        """The mapped tensor, in its `shape` and stored dtype; it must not be written to."""
        return self._tensors[name]


def _part_sizes(path: Path) -> list[int]:
    """The size of each part in bytes; nothing is compressed, and together they are no longer than the file."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
        size = path.stat().st_size
    except OSError as error:
        raise UsageError(f"cannot read the checkpoint file {path}: {error.strerror or error}.") from None
    except Exception:  # zipfile raises many things on damaged archives
        raise _bad(path, "it is not the zip archive that torch.save writes since torch 1.6") from None
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise _bad(path, "parts of it are compressed")
    claimed = sum(entry.file_size for entry in entries)
    if claimed > size:
        raise _bad(path, f"its parts claim {claimed} bytes, and it has {size}")
    if any(entry.filename.endswith("data.pkl") and entry.file_size > _MOST_INDEX for entry in entries):
        raise _bad(path, f"its index is longer than {_MOST_INDEX} bytes")
    return [entry.file_size for entry in entries]


def _bad(path: Path, why: str) -> UsageError:
    return UsageError(f"cannot read the checkpoint file {path}: {why}; convert it to safetensors.")
