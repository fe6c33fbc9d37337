"""The sharded modules with NKI kernels: the same cases and verdicts, and a mistake in a kernel is a mismatch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tp_harness.config.model import NeuronConfig
from tp_harness.models.gpt_oss.config import PRESETS, InferenceConfig
from tp_harness.models.gpt_oss.modules import NeuronGPTOSSAttentionBlock, NeuronGPTOSSTransformer, nki

CONFIG = InferenceConfig.of(PRESETS["tiny"], NeuronConfig(batch_size=2, seq_len=20, torch_dtype="float32"))


def run_verify(cwd: Path, *options: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """`tp-harness verify --kernels nki`, after a line of sabotage that the forked ranks inherit."""
    code = f"{before}\nimport sys\nfrom tp_harness.cli import main\nsys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "verify", "--kernels", "nki", "--draws", "1", *options]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_every_component_passes_on_gloo_ranks(tmp_path: Path) -> None:
    result = run_verify(tmp_path, "--tp", "1,2,8")
    assert result.returncode == 0, result.stdout + result.stderr
    (path,) = tmp_path.glob("artifacts/*/run.json")
    record = json.loads(path.read_text())
    assert record["options"]["kernels"] == "nki"
    assert len(record["results"]) == 60 and {r["status"] for r in record["results"]} == {"PASS"}
    notes = [note for note in record["notes"] if "never run on Trn1" in note]
    assert len(notes) == 1


@pytest.mark.slow
def test_replicated_kv_heads_at_32_ranks(tmp_path: Path) -> None:
    result = run_verify(tmp_path, "--tp", "32", "--component", "attention", "--component", "mlp", "--dtype", "float32")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "3 PASS" in result.stdout


MISTAKES = {
    "window": ("attention", "k['window'] = k['window'] and k['window'] + 1"),
    "scale": ("attention", "k['scale'] = k['scale'] * 1.001"),
    "limit": ("expert_mlp", "k['limit'] = 1e9"),
    "bias_on_every_rank": ("expert_mlp", "k['bias_share'] = 1.0"),
    "eps": ("rmsnorm", "k['eps'] = 1e-4"),
}


FIRST, *OTHERS = MISTAKES


@pytest.mark.parametrize("mistake", [FIRST, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_mistake_in_a_kernel_call_is_a_mismatch(tmp_path: Path, mistake: str) -> None:
    kernel, change = MISTAKES[mistake]
    before = (
        "import tp_harness.models.gpt_oss.modules.nki as nki\n"
        "right = nki.run\n"
        "def wrong(name, *a, **k):\n"
        f"    if name == {kernel!r}: {change}\n"
        "    return right(name, *a, **k)\n"
        "nki.run = wrong\n"
    )
    result = run_verify(
        tmp_path, "--tp", "2", "--component", "transformer_block", "--dtype", "float32", "--layer", "0", before=before
    )
    assert result.returncode == 1, result.stdout + result.stderr
    assert "MISMATCH transformer_block: " in result.stdout
    assert " at tp 2 in float32" in result.stdout


def test_every_part_with_a_kernel_becomes_one() -> None:
    model = NeuronGPTOSSTransformer(CONFIG)
    assert nki.use_kernels(model)
    left = {type(child) for child in model.modules()} & set(nki._CLASSES)
    assert not left
    assert set(model.state_dict()) == set(NeuronGPTOSSTransformer(CONFIG).state_dict())


def test_attention_kernel_refuses_positions_with_gaps() -> None:
    block = NeuronGPTOSSAttentionBlock(CONFIG)
    assert nki.use_kernels(block)
    positions = torch.arange(20) * 2
    with pytest.raises(ValueError, match="needs consecutive positions in each row"):
        block(torch.randn(2, 20, CONFIG.hidden_size), positions)
