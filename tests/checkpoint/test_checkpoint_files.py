"""Folders of checkpoints with a broken entry: refused in a sentence that names it, before any rank starts."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tp_harness import verify
from tp_harness.checkpoint.checkpoint_files import check_file, checkpoint_files
from tp_harness.config.options import Options
from tp_harness.errors import UsageError
from tp_harness.testing import load_checkpoint


def bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


OTHER = "a pipe, a socket or a device; a file of tensors is needed: take it out, or rename it."
# what is made of the path, and the sentence about it
BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "link_to_nothing": (
        lambda path: path.symlink_to("blobs/gone"),
        "the checkpoint file {} is a link to blobs/gone, which is not there: download it again, or take the link out.",
    ),
    "link_to_itself": (
        lambda path: path.symlink_to(path.name),
        "cannot read the checkpoint file {}: Too many levels of symbolic links.",
    ),
    "folder": (
        lambda path: path.mkdir(),
        "the checkpoint file {} is a folder; a file of tensors is needed: take it out, or rename it.",
    ),
    "pipe": (os.mkfifo, "the checkpoint file {} is " + OTHER),
    "socket": (bind, "the checkpoint file {} is " + OTHER),
    "device": (lambda path: path.symlink_to("/dev/zero"), "the checkpoint file {} is " + OTHER),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint of two files and their index; the way to it is short enough for a socket."""
    monkeypatch.chdir(tmp_path)
    folder = Path("full")
    folder.mkdir()
    names = {"v": "model-1.safetensors", "w": "model-2.safetensors"}
    for tensor, name in names.items():
        save_file({tensor: torch.ones(2)}, folder / name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return folder


def test_a_whole_folder_is_its_files_and_other_entries_do_not_matter(folder: Path) -> None:
    (folder / "README.md").symlink_to("gone")
    (folder / "original").mkdir()
    (folder / "pytorch_model.bin.index.json").write_text("not read where there are safetensors")
    files = [folder / "model-1.safetensors", folder / "model-2.safetensors"]
    assert checkpoint_files(folder) == files
    assert checkpoint_files(files[0]) == files[:1]


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_no_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, suffix: str) -> None:
    monkeypatch.chdir(tmp_path)
    make, text = BROKEN[kind]
    path = Path("full", f"x{suffix}")
    path.parent.mkdir()
    make(path)
    sentence = f"^{re.escape(text.format(path))}$"
    for call, argument in ((checkpoint_files, path.parent), (check_file, path), (load_checkpoint, path)):
        with pytest.raises(UsageError, match=sentence):
            call(argument)  # type: ignore[operator]


def test_a_file_that_may_not_be_read_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *_args: object) -> None:  # root may read every file
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UsageError, match=r"^cannot read the checkpoint file .*index\.json: Permission denied\.$"):
        checkpoint_files(folder)
    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(UsageError, match=r"^cannot read the checkpoint full: Permission denied\.$"):
        checkpoint_files(folder)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (
            '{"weight_map": {"a": "model-1.safetensors", "b": "model-3.safetensors", "c": "model-4.safetensors"}}',
            "names the file model-3.safetensors (and 1 more), which is not there: download it again, or take "
            "the index out.",
        ),
        ('{"weight_map": {"a": "../x"}}', "names the file ../x, which is not there"),
        ("{", "is not JSON: Expecting property name"),
        ("\0", "is not JSON: Expecting value"),
        ("[" * 100_000, "is not JSON: maximum recursion depth exceeded"),
        ("[]", "has no weight_map from tensors to files; download it again, or take it out."),
        ('{"weight_map": {"a": 1}}', "has no weight_map from tensors to files"),
    ],
    ids=["missing", "elsewhere", "cut", "nul", "deep", "list", "number"],
)
def test_an_index_that_names_what_is_not_there_is_refused(folder: Path, content: str, text: str) -> None:
    index = folder / "model.safetensors.index.json"
    index.write_text(content)
    with pytest.raises(UsageError, match=f"^{re.escape(f'{index} {text}')}"):
        checkpoint_files(folder)


def test_an_index_alone_names_its_files_and_is_no_checkpoint_itself(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    with pytest.raises(UsageError, match=rf"^the checkpoint {index} is an index of files; give its folder, full\.$"):
        checkpoint_files(index)
    for file in folder.glob("*.safetensors"):
        file.unlink()
    with pytest.raises(UsageError, match=r"names the file model-1\.safetensors \(and 1 more\), which is not there"):
        checkpoint_files(folder)


def test_a_run_refuses_it_too(folder: Path) -> None:
    (folder / "model-3.safetensors").symlink_to("gone")
    options = Options(components=("rmsnorm",), degrees=(1,), checkpoint=folder, out=Path("out"))
    with pytest.raises(UsageError, match=r"model-3\.safetensors is a link to gone, which is not there"):
        verify(options)
