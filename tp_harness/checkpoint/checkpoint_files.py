"""The files of a checkpoint: those of a folder, or one; each of them there and readable, and none of an index missing.

A folder may hold an index (Hugging Face's model.safetensors.index.json), which says which tensor is in which file.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from ..errors import UsageError
from .tensor_files import TORCH_SUFFIXES

_SAFE = (".safetensors",)
_INDEX = ".index.json"
_MOST_BYTES = 1 << 28  # of an index: a large model's has a few megabytes


def checkpoint_files(path: Path) -> list[Path]:
    """The .safetensors files of a folder (without any: its .pt, .pth and .bin files), or the one file.

    Raises:
        UsageError: there is none; one is a folder, a link to nothing or cannot be read; the index names another.
    """
    try:
        if path.name.endswith(_INDEX):
            raise UsageError(f"the checkpoint {path} is an index of files; give its folder, {path.parent}.")
        if not path.is_dir():
            files = [path]
            if not path.exists() and not path.is_symlink():
                raise UsageError(f"the checkpoint {path} does not exist.")
        else:
            files = _of_folder(path)
    except OSError as error:  # a folder above it, or itself, may not be read
        raise UsageError(f"cannot read the checkpoint {path}: {error.strerror}.") from None
    for file in files:
        check_file(file)
    return files


def check_file(path: Path) -> None:
    """Refuse what is not a readable file; opening a pipe would wait for a writer.

    Raises:
        UsageError: it is a folder, a pipe, a link to nothing, or cannot be read; says which.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISREG(mode):
            path.open("rb").close()
            return
    except OSError as error:
        if isinstance(error, FileNotFoundError) and path.is_symlink():
            raise UsageError(
                f"the checkpoint file {path} is a link to {os.readlink(path)}, which is not there: download it again, "
                "or take the link out."
            ) from None
        raise UsageError(f"cannot read the checkpoint file {path}: {error.strerror}.") from None
    kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, a socket or a device"
    raise UsageError(f"the checkpoint file {path} is {kind}; a file of tensors is needed: take it out, or rename it.")


def _of_folder(folder: Path) -> list[Path]:
    entries = sorted(folder.iterdir())
    for suffixes in (_SAFE, TORCH_SUFFIXES):
        files = [path for path in entries if path.suffix in suffixes]
        for index in (path for path in entries if path.name.endswith(tuple(s + _INDEX for s in suffixes))):
            _check_index(index, (path.name for path in files))
        if files:
            return files
    raise UsageError(f"the checkpoint folder {folder} holds no .safetensors, {' or '.join(TORCH_SUFFIXES)} file.")


def _check_index(index: Path, there: Iterable[str]) -> None:
    check_file(index)
    try:
        with index.open("rb") as file:
            content = json.loads(file.read(_MOST_BYTES))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{index} is not JSON: {error}; download it again, or take it out.") from None
    files = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
        raise UsageError(f"{index} has no weight_map from tensors to files; download it again, or take it out.")
    missing = sorted(set(files.values()) - set(there))
    if missing:
        others = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise UsageError(
            f"{index} names the file {missing[0]:.200}{others}, which is not there: download it again, or take the "
            "index out."
        )
