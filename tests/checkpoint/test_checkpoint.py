"""Checkpoints: what is written is what is read, and no bad file gets further than a sentence."""

from __future__ import annotations

import dataclasses
import json
import pickle
import re
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tp_harness.case.seeds import generator
from tp_harness.checkpoint.checkpoint import Checkpoint, TensorSpec, check_checkpoint, find_checkpoint, write_checkpoint
from tp_harness.errors import UsageError
from tp_harness.parallel.placements import same_bits

DTYPES = ("float64", "float32", "bfloat16", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")
DTYPES += ("uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "complex64")


def spec(name: str, *shape: int, dtype: torch.dtype = torch.float32) -> TensorSpec:
    return TensorSpec(name=name, shape=shape, dtype=dtype)


def raw_file(path: Path, header: object, data: bytes = b"") -> Path:
    """A safetensors file with this header, whether JSON values or bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(dtype: str, shape: list[int], start: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def checked(path: Path, *needed: TensorSpec) -> Checkpoint:
    """The checkpoint, after all that is done before a rank starts; the model has the needed tensors only."""
    checkpoint = find_checkpoint(path)
    check_checkpoint(checkpoint, needed, {s.name: s.shape for s in needed})
    return checkpoint


def test_what_is_written_is_what_safetensors_reads(tmp_path: Path) -> None:
    specs = [spec(f"t.{name}", 3, 5, dtype=getattr(torch, name)) for name in reversed(DTYPES)]
    specs += [spec("scalar"), spec("empty", 0, 4), spec("vector", 7, dtype=torch.bfloat16)]
    values = {s.name: torch.randn(s.shape, generator=generator(0, s.name)).mul(50).to(s.dtype) for s in specs}
    write_checkpoint(tmp_path / "a.safetensors", specs, lambda s: values[s.name])
    theirs, ours = load_file(tmp_path / "a.safetensors"), find_checkpoint(tmp_path)
    assert set(theirs) == ours.names == set(values)
    for name, value in values.items():
        assert same_bits(theirs[name], value)
        assert same_bits(ours.tensor(name), value)
        assert ours.shape(name) == tuple(value.shape)
        assert ours.tensor(name).data_ptr() % value.element_size() == 0  # aligned, whatever the order given


def test_ranks_share_one_mapping(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a.safetensors", [spec("w", 4)], lambda _: torch.ones(4))
    checkpoint = find_checkpoint(tmp_path / "a.safetensors")
    assert checkpoint.tensor("w").data_ptr() == checkpoint.tensor("w").data_ptr()


def test_values_are_repeated_until_the_tensor_is_full(tmp_path: Path) -> None:
    pool = torch.arange(7.0)
    specs = [spec("short", 1, 3), spec("long", 5, 4)]
    write_checkpoint(tmp_path / "a.safetensors", specs, lambda _: pool)
    read = load_file(tmp_path / "a.safetensors")
    assert read["short"].tolist() == [[0.0, 1.0, 2.0]]
    assert same_bits(read["long"], pool.repeat(3)[:20].view(5, 4))


def test_several_files_are_one_checkpoint_and_no_tensor_is_in_two(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "1.safetensors")
    save_file({"b": torch.zeros(2)}, tmp_path / "2.safetensors")
    (tmp_path / "notes.txt").write_text("no weights")
    assert checked(tmp_path, spec("a", 2), spec("b", 2)).names == {"a", "b"}
    save_file({"b": torch.ones(2)}, tmp_path / "3.safetensors")
    text = f"the checkpoint file {tmp_path}/3.safetensors holds b, which a file before it holds too."
    with pytest.raises(UsageError, match=f"^{re.escape(text)}$"):
        find_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("absent", "the checkpoint {} does not exist."),
        ("folder", "the checkpoint folder {} holds no .safetensors, .pt or .pth or .bin file."),
        ("a" * 300, "cannot read the checkpoint {}: File name too long."),
    ],
    ids=["absent", "empty_folder", "name_too_long"],
)
def test_a_path_that_is_no_checkpoint_is_named(tmp_path: Path, path: str, text: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match=f"^{re.escape(text.format(tmp_path / path))}"):
        find_checkpoint(tmp_path / path)


GOOD = {"a": entry("F32", [2], 0, 8), "b": entry("F32", [2], 8, 16)}
BAD_HEADERS: dict[str, tuple[object, bytes, str]] = {
    "not_json": (b"{garbage}", b"", "invalid JSON"),
    "not_text": (b'{"\xff": 1}', b"", "invalid UTF-8"),
    "no_object": ([1, 2], b"", "invalid"),
    "unknown_dtype": ({"a": entry("F99", [2], 0, 8)}, bytes(8), "unknown variant"),
    "huge_shape": ({"a": entry("F32", [2**62, 2**62], 0, 8)}, bytes(8), "overflow"),
    "negative_shape": ({"a": entry("F32", [-2], 0, 8)}, bytes(8), "invalid"),
    "overlapping": ({"a": entry("F32", [2], 0, 8), "b": entry("F32", [2], 4, 12)}, bytes(12), "invalid|offset"),
    "backwards": ({"a": entry("F32", [2], 8, 0)}, bytes(8), "invalid|offset"),
    "size_and_offsets": ({"a": entry("F32", [3], 0, 8)}, bytes(8), "shape|dtype|offset"),
    "beyond_the_end": ({"a": entry("F32", [2**40], 0, 2**42)}, bytes(8), "incomplete|buffer"),
    "data_cut": (GOOD, bytes(15), "incomplete|buffer"),
    "data_left_over": (GOOD, bytes(17), "incomplete|buffer"),
}


@pytest.mark.parametrize("name", BAD_HEADERS)
def test_a_file_with_a_bad_header_is_named_with_the_reason(tmp_path: Path, name: str) -> None:
    header, data, reason = BAD_HEADERS[name]
    path = raw_file(tmp_path / "a.safetensors", header, data)
    with pytest.raises(UsageError, match=rf"^cannot read the checkpoint file {path}: .*({reason})"):
        find_checkpoint(tmp_path)
    assert find_checkpoint(raw_file(path, GOOD, bytes(16))).names == {"a", "b"}  # the form itself is right


@pytest.mark.parametrize("length", [0, 7, 8, 40, -9, -1])
def test_a_truncated_file_is_refused_wherever_it_was_cut(tmp_path: Path, length: int) -> None:
    path = tmp_path / "a.safetensors"
    write_checkpoint(path, [spec("w", 4)], lambda _: torch.ones(4))
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(UsageError, match=f"^cannot read the checkpoint file {path}: "):
        find_checkpoint(path)


NEEDED = (spec("a", 2, 3), spec("b", 2))
BAD_TENSORS: dict[str, tuple[dict[str, torch.Tensor], str]] = {
    "missing": ({"a": torch.ones(2, 3)}, "the checkpoint {}/x.safetensors lacks the tensor b of shape [2]."),
    "extra": ({"c": torch.ones(4, 1)}, "the checkpoint {}/x.safetensors has a tensor c [4, 1] that the model has not."),
    "misshapen": ({"a": torch.ones(3, 2)}, "the checkpoint's tensor a has shape [3, 2]; the model needs [2, 3]."),
    "flat": ({"b": torch.ones(1, 2)}, "the checkpoint's tensor b has shape [1, 2]; the model needs [2]."),
    "integer": (
        {"b": torch.ones(2, dtype=torch.int8)},
        "the checkpoint's tensor b is stored as I8; one of F64, F32, BF16, F16 is needed.",
    ),
    "float8": (
        {"b": torch.ones(2).to(torch.float8_e4m3fn)},
        "the checkpoint's tensor b is stored as F8_E4M3; one of F64, F32, BF16, F16 is needed.",
    ),
    "nan": (
        {"a": torch.tensor([[1.0, 1, 1], [1, 1, float("nan")]])},
        "the checkpoint's tensor a holds nan at [1, 2]; weights must be finite.",
    ),
    "inf": (
        {"b": torch.tensor([1.0, float("-inf")]).bfloat16()},
        "the checkpoint's tensor b holds -inf at [1]; weights must be finite.",
    ),
}


@pytest.mark.parametrize("name", BAD_TENSORS)
def test_a_tensor_that_does_not_fit_the_model_is_named(tmp_path: Path, name: str) -> None:
    tensors, text = BAD_TENSORS[name]
    good = {"a": torch.ones(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)}
    path = tmp_path / "x.safetensors"
    save_file(good, path)
    checked(tmp_path, *NEEDED)
    save_file(tensors if name == "missing" else good | tensors, path)
    with pytest.raises(UsageError, match=f"^{re.escape(text.format(tmp_path))}$"):
        checked(tmp_path, *NEEDED)


def test_tensors_of_components_that_were_not_chosen_are_known_and_not_read(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2, 3), "b": torch.full((2,), float("nan"))}, tmp_path / "x.safetensors")
    check_checkpoint(find_checkpoint(tmp_path), NEEDED[:1], {"a": (2, 3), "b": (2,)})


class Payload:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_in_disguise_is_refused_and_never_run(tmp_path: Path) -> None:
    marker, path = tmp_path / "it_ran", tmp_path / "x.safetensors"
    path.write_bytes(pickle.dumps(Payload(marker)))
    with pytest.raises(UsageError, match="cannot read the checkpoint file"):
        find_checkpoint(path)
    torch.save({"a": Payload(marker)}, path)
    with pytest.raises(UsageError, match="cannot read the checkpoint file"):
        find_checkpoint(path)
    assert not marker.exists()
    pickle.loads(pickle.dumps(Payload(marker)))
    assert marker.exists()  # the payload works: reading it as a pickle would have shown


BITS = {"F32": 32, "BF16": 16, "F64": 64, "F4": 4, "F6_E2M3": 6, "F8_E8M0": 8, "U64": 64, "C64": 64, "BOOL": 8}
NUMBER = st.integers(-1, 40) | st.sampled_from([2**31, 2**63 - 1, 2**64, -(2**63)])
NAME = st.sampled_from(["a", "b", "c", "", "__metadata__"])
ENTRY = st.fixed_dictionaries(
    {"dtype": st.sampled_from([*BITS, "?"]), "shape": st.lists(NUMBER), "data_offsets": st.lists(NUMBER, max_size=3)}
)
HEADER = st.dictionaries(NAME, ENTRY | st.none() | NUMBER, max_size=3)
SHAPES = st.sampled_from([(2, 3), (2,), (), (0,), (8, 3)])
CONSISTENT = st.dictionaries(NAME, st.tuples(st.sampled_from([*BITS]), SHAPES), max_size=3)


def consistent(chosen: dict[str, tuple[str, tuple[int, ...]]]) -> tuple[dict[str, Any], bytes]:
    """Header and data that agree with each other, of tensors that the model may not want."""
    header, end = {}, 0
    for name, (dtype, shape) in chosen.items():
        start, end = end, end + BITS[dtype] * torch.Size(shape).numel() // 8
        header[name] = entry(dtype, list(shape), start, end)
    return header, bytes(end)


FUZZ = settings(deadline=None, max_examples=100)


def outcome(folder: Path, content: bytes) -> str:
    """What checking such a file comes to; anything but a UsageError is raised."""
    path = folder / "x.safetensors"
    path.write_bytes(content)
    try:
        checked(path, *NEEDED)
    except UsageError as error:
        assert str(path) in str(error) or "the checkpoint's tensor" in str(error)
        return "refused"
    return "accepted"


@given(header=HEADER, data=st.binary(max_size=40), length=st.none() | NUMBER)
@FUZZ
def test_any_header_is_accepted_or_a_usage_error(
    tmp_path_factory: pytest.TempPathFactory, header: dict[str, Any], data: bytes, length: int | None
) -> None:
    text = json.dumps(header).encode()
    prefix = struct.pack("<Q", (len(text) if length is None else length) % 2**64)
    outcome(tmp_path_factory.getbasetemp(), prefix + text + data)


@given(chosen=CONSISTENT)
@example(chosen={"a": ("F32", (2, 3)), "b": ("BF16", (2,))})
@FUZZ
def test_any_set_of_tensors_is_accepted_or_a_usage_error(
    tmp_path_factory: pytest.TempPathFactory, chosen: dict[str, tuple[str, tuple[int, ...]]]
) -> None:
    folder = tmp_path_factory.getbasetemp()
    fits = {name: shape for name, (_, shape) in chosen.items()} == {s.name: s.shape for s in NEEDED}
    fits = fits and {dtype for dtype, _ in chosen.values()} <= {"F32", "BF16", "F64"}
    content = raw_file(folder / "x.safetensors", *consistent(chosen)).read_bytes()
    assert outcome(folder, content) == ("accepted" if fits else "refused")


@given(position=st.integers(0, 10_000), byte=st.integers(0, 255), kind=st.sampled_from(list(DTYPES[:4])))
@FUZZ
def test_any_changed_byte_is_accepted_or_a_usage_error(
    tmp_path_factory: pytest.TempPathFactory, position: int, byte: int, kind: str
) -> None:
    folder = tmp_path_factory.getbasetemp()
    specs = [dataclasses.replace(s, dtype=getattr(torch, kind)) for s in NEEDED]
    write_checkpoint(folder / "x.safetensors", specs, lambda _: torch.ones(6))
    content = bytearray((folder / "x.safetensors").read_bytes())
    assert outcome(folder, bytes(content)) == "accepted"
    content[position % len(content)] = byte
    outcome(folder, bytes(content))


def test_where_only_what_is_needed_is_known_the_rest_is_passed_over(tmp_path: Path) -> None:
    needed = [spec("w", 2), spec("steps", 2, dtype=torch.int64)]
    path = tmp_path / "own.safetensors"
    tensors = {"w": torch.ones(2), "steps": torch.ones(2, dtype=torch.int64), "other": torch.ones(3, dtype=torch.int8)}
    save_file(tensors, path)
    check_checkpoint(find_checkpoint(path), needed, None)
    save_file(tensors | {"steps": torch.ones(2)}, path)
    with pytest.raises(UsageError, match=r"^the checkpoint's tensor steps is stored as F32; torch.int64 is needed\.$"):
        check_checkpoint(find_checkpoint(path), needed, None)
