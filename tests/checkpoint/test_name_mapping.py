"""Checkpoints as they are published: Hugging Face's names, packed experts, and what is said of a wrong one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command import Harness
from hf_twin import filled, hf_state
from safetensors.torch import save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from tp_harness.checkpoint.checkpoint import Checkpoint, TensorSpec, find_checkpoint, write_checkpoint
from tp_harness.checkpoint.mxfp4 import unpack
from tp_harness.errors import UsageError
from tp_harness.models.gpt_oss.config import PRESETS
from tp_harness.models.gpt_oss.name_mapping import translation
from tp_harness.parallel.placements import same_bits

TINY = PRESETS["tiny"]
EXPERTS = {"mlp1_weight": "gate_up_proj", "mlp2_weight": "down_proj"}
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def public() -> Tensors:
    return dict(filled(TINY).state_dict())  # type: ignore[arg-type]  # the reference's config has the same fields


@pytest.fixture(scope="module")
def hugging_face() -> Tensors:
    state = hf_state(filled(TINY))  # type: ignore[arg-type]  # as above
    return {name: tensor.detach().contiguous() for name, tensor in state.items()}


def packed(shape: tuple[int, ...], seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random blocks, and scales of 2^-7 to 2^4."""
    generator = torch.Generator().manual_seed(seed)
    grouped = (*shape[:-1], shape[-1] // 32)
    blocks = torch.randint(0, 256, (*grouped, 16), dtype=torch.uint8, generator=generator)
    return blocks, torch.randint(120, 132, grouped, dtype=torch.uint8, generator=generator)


def pack(state: Tensors, public: Tensors, *, hugging_face: bool) -> Tensors:
    """`state` with its experts packed; `public` gets the values that they stand for."""
    state = dict(state)
    for i, (name, tensor) in enumerate(sorted(public.items())):
        prefix, _, leaf = name.rpartition(".")
        if leaf not in EXPERTS:
            continue
        theirs = f"model.layers.{prefix.split('.')[1]}.mlp.experts.{EXPERTS[leaf]}" if hugging_face else name
        blocks, scales = packed(tuple(tensor.shape), i)
        public[name] = unpack(blocks, scales)
        join = "_" if hugging_face else "."
        state |= {f"{theirs}{join}blocks": blocks, f"{theirs}{join}scales": scales}
        del state[theirs]
    return state


def translated(folder: Path, state: Tensors, public: Tensors) -> tuple[Checkpoint, str]:
    """The state, stored, translated and stored again; and the note."""
    save_file(state, folder / "given.safetensors")
    found = translation(find_checkpoint(folder), {name: tuple(t.shape) for name, t in public.items()})
    assert found is not None
    specs = [TensorSpec(name=name, shape=tuple(t.shape), dtype=t.dtype) for name, t in public.items()]
    found.check(specs)
    write_checkpoint(folder / "made.safetensors", specs, found.pieces)
    return Checkpoint([folder / "made.safetensors"]), found.note


def test_unpacking_is_what_transformers_does() -> None:
    blocks, scales = packed((3, 10, 96), 0)
    assert torch.equal(unpack(blocks, scales), convert_moe_packed_tensors(blocks, scales).mT)
    every = torch.arange(256, dtype=torch.uint8).view(16, 1, 16)
    assert set(unpack(every, torch.full((16, 1), 127, dtype=torch.uint8)).unique().tolist()) == {
        sign * value for sign in (1, -1) for value in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
    }


@pytest.mark.parametrize("is_packed", [False, True], ids=["plain", "mxfp4"])
@pytest.mark.parametrize("naming", ["hugging_face", "public"])
def test_every_tensor_comes_out_bit_for_bit(
    tmp_path: Path, public: Tensors, hugging_face: Tensors, naming: str, is_packed: bool
) -> None:
    public, state = dict(public), dict(hugging_face if naming == "hugging_face" else public)
    if is_packed:
        state = pack(state, public, hugging_face=naming == "hugging_face")
    elif naming == "public":
        save_file(state, tmp_path / "given.safetensors")
        assert translation(find_checkpoint(tmp_path), {}) is None  # mapped as it is
        return
    made, note = translated(tmp_path, state, public)
    assert made.names == public.keys()
    for name, tensor in public.items():
        assert same_bits(made.tensor(name), tensor), name
    assert note.startswith("the checkpoint has ") and ("packed as MXFP4" in note) == is_packed
    assert ("Hugging Face names" in note) == (naming == "hugging_face")


Q_PROJ, DOWN = "model.layers.1.self_attn.q_proj.weight", "model.layers.0.mlp.experts.down_proj"
WRONG: dict[str, tuple[Callable[[Tensors], object], str]] = {
    "missing": (lambda t: t.pop(Q_PROJ), f"lacks the tensor {Q_PROJ} of shape [1024, 96], which makes block.1.attn"),
    "unknown": (lambda t: t.update({"model.layers.2.mlp.router.bias": torch.ones(8)}),
                "has a tensor model.layers.2.mlp.router.bias [8] that the model has not."),
    "misshapen": (lambda t: t.update({DOWN: t[DOWN].mT.contiguous()}),
                  f"{DOWN} has shape [8, 96, 160]; the model needs [8, 160, 96]."),
    "dtype": (lambda t: t.update({Q_PROJ: t[Q_PROJ].to(torch.int32)}),
              f"{Q_PROJ} is stored as I32; one of F64, F32, BF16, F16 is needed."),
    "no-scales": (lambda t: (t.pop(DOWN), t.update({f"{DOWN}_blocks": packed((8, 96, 160), 0)[0]})),
                  f"lacks the tensor {DOWN}_scales of shape [8, 96, 5]"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_checkpoint_is_one_sentence(tmp_path: Path, public: Tensors, hugging_face: Tensors, name: str) -> None:
    spoil, message = WRONG[name]
    state = dict(hugging_face)
    spoil(state)
    with pytest.raises(UsageError) as caught:
        translated(tmp_path, state, public)
    text = str(caught.value)
    assert message in text and "(Hugging Face names" in text and str(tmp_path) in text and "\n" not in text


def test_blocks_must_be_whole(tmp_path: Path) -> None:
    save_file({"block.0.mlp.mlp1_weight.blocks": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(UsageError, match=r"mlp1_weight\.blocks cannot hold 90 columns: MXFP4 packs blocks of 32\.$"):
        translation(find_checkpoint(tmp_path), {"block.0.mlp.mlp1_weight": (8, 320, 90)})


def test_the_command_takes_a_packed_hugging_face_checkpoint(
    tmp_path: Path, public: Tensors, hugging_face: Tensors
) -> None:
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.mkdir()
    bad.mkdir()
    state = pack(hugging_face, dict(public), hugging_face=True)
    save_file(state, good / "model.safetensors")
    scales = state["model.layers.0.mlp.experts.down_proj_scales"].clone()
    scales[3, 5, 1] = 255  # not a number, by the format
    save_file(state | {"model.layers.0.mlp.experts.down_proj_scales": scales}, bad / "model.safetensors")
    harness = Harness(tmp_path)
    options = ["--component", "mlp", "--component", "attention", "--tp", "1,8", "--draws", "1", "--dtype", "float32"]
    [(fine, _), (wrong, text)] = harness.run(
        [*options, "--checkpoint", str(good)], [*options, "--checkpoint", str(bad)]
    )
    assert (fine, wrong) == (0, 2)
    assert "tensor block.0.mlp.mlp2_weight holds " in text and "weights must be finite" in text
    assert any("Hugging Face names, experts packed as MXFP4" in note for note in harness.record()["notes"])
