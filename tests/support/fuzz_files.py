"""Hostile files: a config.json, a checkpoint or a run.json with wrong, missing and odd values."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path

import torch
from fuzz_attempt import attempt, no_ranks
from fuzz_junk import json_bytes, mutate, spoil
from fuzz_words import WORDS

from tp_harness.checkpoint.checkpoint import TensorSpec, write_checkpoint
from tp_harness.config.options import Options, as_record, resolve
from tp_harness.models.gpt_oss.config import PRESETS
from tp_harness.results.result import Gate, Result, Status
from tp_harness.results.run_record import open_record

NEEDED = (
    TensorSpec(name="block.0.attn.norm.scale", shape=(96,), dtype=torch.float32),
    TensorSpec(name="norm.scale", shape=(96,), dtype=torch.bfloat16),
)

CONFIG = {
    **{f: v for f, v in vars(PRESETS["tiny"]).items() if not f.startswith("rope_")},
    "model_type": "gpt_oss", "rms_norm_eps": 1e-5, "rope_theta": 150000, "hidden_act": "silu",
    "layer_types": ["sliding_attention", "full_attention"], "num_local_experts": 8, "num_experts_per_tok": 4,
    "rope_scaling": {"factor": 32.0, "beta_slow": 1.0, "beta_fast": 32.0, "rope_type": "yarn", "truncate": False,
                     "original_max_position_embeddings": 4096},
}  # fmt: skip


def fuzz_config(folder: Path, chance: random.Random) -> str:
    """A config.json with wrong, missing and odd values."""
    (folder / "config.json").write_bytes(json_bytes(mutate(CONFIG, chance, chance.randrange(1, 4)), chance))
    component = chance.choice(["rmsnorm", "rope", "attention", "mlp", "embedding", "transformer"])
    degrees = chance.choice(["1", "2", "1,2,8,32", "7"])
    arguments = ["verify", "--model", "config.json", "--component", component, "--tp", degrees, "--out", "out"]
    with no_ranks(folder):
        return attempt(arguments)


def fuzz_header(folder: Path, chance: random.Random) -> str:
    """A checkpoint whose header, pickle or sizes are wrong."""
    path = folder / chance.choice(["x.safetensors", "x.safetensors", "x.pt"])
    if path.suffix == ".pt":
        torch.save({spec.name: torch.ones(spec.shape, dtype=spec.dtype) for spec in NEEDED}, path)
        path.write_bytes(spoil(path.read_bytes(), chance))
    else:
        write_checkpoint(path, NEEDED, lambda spec: torch.ones(spec.shape))
        content = path.read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        header = json.dumps(mutate(json.loads(content[8 : 8 + length]), chance, chance.randrange(1, 3))).encode()
        claimed = len(header) if chance.random() < 0.8 else chance.choice([0, 1, 2**20, 2**40, 2**63, 2**64 - 1])
        content = struct.pack("<Q", claimed) + header + content[8 + length :]
        path.write_bytes(spoil(content, chance) if chance.random() < 0.2 else content)
    given = path if chance.random() < 0.5 else folder
    with no_ranks(folder):
        return attempt(["verify", "--checkpoint", str(given), "--component", "rmsnorm", "--tp", "2", "--out", "out"])


def fuzz_resume(folder: Path, chance: random.Random) -> str:
    """A run.json given to --resume with wrong, missing and odd values."""
    resolved = resolve(Options(components=("rmsnorm", "mlp"), degrees=(1, 2), draws=1))
    gate = Gate(kind="rel_L2", tensor="output.0", value=1e-7, limit=1e-5, reason="a reason")
    common = {"backend": "gloo", "layer": 0, "draws": 1, "seed": 0, "status": Status.PASS, "reason": "", "gate": gate}
    record = open_record(
        folder / "out", command="tp-harness verify", options=as_record(resolved), backend="gloo", blind_spots=""
    )
    for dtype in resolved.dtypes:
        record.add(Result(component="rmsnorm", tp=1, dtype=dtype, gates=(gate,), **common))  # type: ignore[arg-type]
    record.release()
    values = mutate(json.loads(record.path.read_text()), chance, chance.randrange(1, 4))
    record.path.write_bytes(json_bytes(values, chance))
    extra = [] if chance.random() < 0.8 else [chance.choice(WORDS), chance.choice(WORDS)]
    with no_ranks(folder):
        return attempt(["verify", "--resume", str(record.folder), *extra])
