"""torch.save's files as checkpoints: mapped, never run, and refused in a sentence."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command import Harness, write_tiny_checkpoint
from safetensors.torch import load_file
from torch import nn

from tp_harness.checkpoint.checkpoint import find_checkpoint
from tp_harness.checkpoint.tensor_files import TorchFile, open_tensors
from tp_harness.errors import UsageError


def test_tensors_are_those_that_were_saved_and_mapped(tmp_path: Path) -> None:
    module = nn.Linear(3, 4).to(torch.bfloat16)
    torch.save(module.state_dict(), tmp_path / "a.pt")
    torch.save(OrderedDict(other=nn.Parameter(torch.arange(6.0).reshape(2, 3))), tmp_path / "b.bin")
    (tmp_path / "notes.txt").write_text("no tensors")
    checkpoint = find_checkpoint(tmp_path)
    assert checkpoint.names == {"weight", "bias", "other"}
    assert checkpoint.shape("weight") == (4, 3)
    assert (checkpoint.stored_as("bias"), checkpoint.stored_as("other")) == ("BF16", "F32")
    assert torch.equal(checkpoint.tensor("weight"), module.weight)
    assert str(tmp_path / "a.pt") in Path("/proc/self/maps").read_text(), "mapped, not read"
    (tmp_path / "c.safetensors").write_bytes(b"")
    with pytest.raises(UsageError, match=r"c\.safetensors"):  # where both are, the safer format is meant
        find_checkpoint(tmp_path)


class Payload:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin"])
def test_a_payload_never_runs(tmp_path: Path, suffix: str) -> None:
    marker, path = tmp_path / "it_ran", tmp_path / f"weights{suffix}"
    for save in (torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))):
        save({"a": torch.ones(2), "b": Payload(marker)}, path)
        with pytest.raises(UsageError, match=f"^cannot read the checkpoint file {path}: it is .*; convert it to safe"):
            open_tensors(path)
        assert not marker.exists()
    torch.save({"b": Payload(marker)}, path)
    torch.load(path, weights_only=False)
    assert marker.exists(), "the payload works: opening the file otherwise would have shown"


def rezip(path: Path, change: Callable[[zipfile.ZipInfo, bytes], bytes], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path) as archive:
        parts = [(info, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w", compression) as archive:
        for info, content in parts:
            archive.writestr(info.filename, change(info, content))


def compress(path: Path) -> None:
    torch.save({"a": torch.zeros(1 << 16)}, path)
    rezip(path, lambda info, content: content, zipfile.ZIP_DEFLATED)


def shorten_storage(path: Path) -> None:
    torch.save({"a": torch.ones(64)}, path)
    rezip(path, lambda info, content: content[:8] if info.filename.endswith("data/0") else content)


def claim_more(path: Path) -> None:
    torch.save({"a": torch.ones(64)}, path)
    content = bytearray(path.read_bytes())
    directory = content.index(b"PK\x01\x02")
    content[directory + 24 : directory + 28] = (2**31).to_bytes(4, "little")  # the first part's size
    path.write_bytes(content)


def old_format(path: Path) -> None:
    torch.save({"a": torch.ones(2)}, path, _use_new_zipfile_serialization=False)


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda p: p.write_bytes(b""), "it is not the zip archive that torch.save writes since torch 1.6"),
    "garbage": (lambda p: p.write_bytes(b"PK\3\4" + bytes(200)), "it is not the zip archive"),
    "old": (old_format, "it is not the zip archive"),
    "compressed": (compress, "parts of it are compressed"),
    "claims": (claim_more, "its parts claim "),
    "short": (shorten_storage, "its index claims tensors of other sizes than its parts"),
    "tensor": (lambda p: torch.save(torch.ones(2), p), "it holds a Tensor instead of a state_dict"),
    "nested": (lambda p: torch.save({"model": {"a": torch.ones(2)}}, p), "its state_dict maps 'model' to a dict"),
    "number": (lambda p: torch.save({7: torch.ones(2)}, p), "its state_dict maps 7 to a Tensor"),
    "module": (lambda p: torch.save(nn.Linear(2, 2), p), "it is damaged, or holds more than plain tensors"),
    "strided": (lambda p: torch.save({"a": torch.ones(2, 3).t()}, p), "a is not contiguous"),
    "stretched": (lambda p: torch.save({"a": torch.ones(1).expand(2**40)}, p), "a is not contiguous"),
    "sparse": (lambda p: torch.save({"a": torch.eye(2).to_sparse()}, p), "a is not contiguous"),
    "meta": (lambda p: torch.save({"a": torch.ones(2, device="meta")}, p), "a is not contiguous"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_file_of_plain_tensors_is_refused(tmp_path: Path, name: str) -> None:
    make, text = BAD[name]
    path = tmp_path / "weights.pt"
    make(path)
    with pytest.raises(UsageError) as caught:
        TorchFile(path)
    assert str(caught.value).startswith(f"cannot read the checkpoint file {path}: {text}")
    assert str(caught.value).endswith("; convert it to safetensors.")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"absent\.pt: No such file or directory\.$"):
        open_tensors(tmp_path / "absent.pt")


def test_any_changed_byte_is_read_or_refused(tmp_path: Path) -> None:
    stream = io.BytesIO()
    torch.save({"a": torch.ones(4)}, stream)
    good, path, read = stream.getvalue(), tmp_path / "weights.pt", 0
    for position in range(0, len(good), 7):
        path.write_bytes(good[:position] + bytes([good[position] ^ 0x55]) + good[position + 1 :])
        try:
            read += bool(open_tensors(path).names)
        except UsageError as error:
            assert str(path) in str(error)
    assert 0 < read < len(good) // 7


@pytest.mark.slow
def test_a_run_on_a_torch_file(tmp_path: Path) -> None:
    harness = Harness(tmp_path)
    torch.save(load_file(write_tiny_checkpoint(tmp_path)), tmp_path / "tiny.pt")
    options = ["--component", "mlp", "--component", "attention", "--tp", "1,8", "--draws", "1"]
    assert harness.code("--checkpoint", str(tmp_path / "tiny.pt"), *options) == 0
    assert {status for *_, status in harness.statuses()} == {"PASS"}
