"""Tensors that repeat a few values, of which only one period is stored, and mapped again and again.

A generated checkpoint of 20 billion weights is 39 GiB of repeated random numbers; as tiles it is 1.6 GiB. A tensor is
contiguous all the same: the same pages are mapped at many addresses. The file is a safetensors file of flat tensors,
whose whole shapes are in its metadata (`checkpoint.write_tiles`).

A tile is a whole number of huge pages. 32 ranks that each read some columns of a gigabyte touch every small page of it,
and looking these up took longer than the computation with them.

Not covered: systems other than Linux, and memory pages of other sizes than 4096 bytes; see `can_map`.
"""

from __future__ import annotations

import ctypes
import json
import math
import mmap
import os
import struct
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ..errors import UsageError
from .tensor_files import TAGS, stored_as_bytes

SUFFIX = ".tiles"
HUGE_BYTES = 1 << 21
_DTYPES = {tag: dtype for dtype, tag in TAGS.items()}
_MAP_FIXED, _MAP_NORESERVE, _MADV_COLLAPSE = 0x10, 0x4000, 25  # Linux's mman.h; Python's mmap lacks these
_PRIVATE = mmap.MAP_PRIVATE | _MAP_NORESERVE
_READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE  # pages are private: only the writer sees what it writes


def can_map() -> bool:
    """Whether this system can map tiles; elsewhere weights are written in full."""
    return sys.platform == "linux" and mmap.PAGESIZE == 4096


def use_huge_pages(path: Path) -> bool:
    """Ask the kernel to keep a file in shared memory in huge pages; True where it does.

    Where it does not (before Linux 6.1, or without free memory in pieces of 2 MiB) the file is only slower.

    Raises:
        OSError: the file cannot be opened or mapped.
    """
    with path.open("r+b") as file:
        size = os.fstat(file.fileno()).st_size // HUGE_BYTES * HUGE_BYTES
        reserved, base = _reserve(size)
        _mmap(base, size, mmap.MAP_SHARED | _MAP_FIXED, file.fileno(), 0)
        done: bool = _libc.madvise(base, size, _MADV_COLLAPSE) == 0
        _libc.munmap(reserved, size + HUGE_BYTES)
    return done


class TiledFile:
    """The tensors of a file; each is mapped when it is first asked for, and then kept."""

    def __init__(self, path: Path) -> None:
        try:
            self._file = safe_open(path, framework="pt")  # checks the header against the file's size
            self._as_bytes = stored_as_bytes(self._file.metadata())
            self._shapes = {name: tuple(shape) for name, shape in json.loads(self._file.metadata()["shapes"]).items()}
            with path.open("rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                self._entries: dict[str, Any] = json.loads(file.read(length))
            self._begin = 8 + length
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except (OSError, SafetensorError, TypeError, KeyError, ValueError) as error:
            raise UsageError(f"cannot read the checkpoint file {path}: {error}.") from None
        weakref.finalize(self, os.close, self._descriptor).atexit = False
        self.names = tuple(self._shapes)
        self._mapped: dict[str, torch.Tensor] = {}
        self._lock = threading.Lock()

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's whole shape."""
        return self._shapes[name]

    def stored_as(self, name: str) -> str:
        """A tensor's dtype in safetensors' words: F32, BF16, ..."""
        return str(self._as_bytes.get(name) or self._entries[name]["dtype"])

    def tensor(self, name: str) -> torch.Tensor:
        """The whole tensor, in its `shape` and stored dtype; it must not be written to.

        Raises:
            OSError: the system refused the mapping.
        """
        with self._lock:
            if name not in self._mapped:
                self._mapped[name] = self._map(name)
            return self._mapped[name]

    def _map(self, name: str) -> torch.Tensor:
        shape, dtype = self.shape(name), self._as_bytes.get(name) or _DTYPES[self.stored_as(name)]
        start, end = self._entries[name]["data_offsets"]
        size = math.prod(shape) * dtype.itemsize
        if size == end - start:
            whole: torch.Tensor = self._file.get_tensor(name)
            return whole.view(dtype).view(shape)
        return torch.frombuffer(_repeated(self._descriptor, self._begin + start, end - start, size), dtype=dtype).view(
            shape
        )


_open: weakref.WeakValueDictionary[tuple[int, int, int], TiledFile] = weakref.WeakValueDictionary()
_opening = threading.Lock()


def open_tiles(path: Path) -> TiledFile:
    """The file's tensors, mapped once per process: 32 ranks in threads would exceed its limit of mappings otherwise.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise UsageError(f"cannot read the checkpoint file {path}: {error.strerror}.") from None
    key = (status.st_dev, status.st_ino, status.st_mtime_ns)
    with _opening:
        found = _open.get(key)
        if found is None:
            found = _open[key] = TiledFile(path)
        return found


def _repeated(descriptor: int, offset: int, tile: int, size: int) -> ctypes.Array[ctypes.c_char]:
    """`size` bytes of memory that repeat `tile` bytes of the file from `offset` on; tile and offset are whole pages."""
    reserved, base = _reserve(size)
    buffer = (ctypes.c_char * size).from_address(base)
    # a thread may still read when Python ends
    weakref.finalize(buffer, _libc.munmap, reserved, size + HUGE_BYTES).atexit = False
    for start in range(0, size, tile):
        _mmap(base + start, min(tile, size - start), _PRIVATE | _MAP_FIXED, descriptor, offset)
    return buffer


def _reserve(size: int) -> tuple[int, int]:
    """Reserve `size + HUGE_BYTES` bytes of addresses: the first one, and the first that begins a huge page."""
    reserved = _mmap(None, size + HUGE_BYTES, _PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    return reserved, reserved + -reserved % HUGE_BYTES


_libc: Any = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *(ctypes.c_int,) * 3, ctypes.c_long)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def _mmap(address: int | None, size: int, flags: int, descriptor: int, offset: int) -> int:
    found: int | None = _libc.mmap(address, size, _READ_WRITE, flags, descriptor, offset)
    if found in (None, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), f"cannot map weights: {os.strerror(ctypes.get_errno())}")
    return int(found)
