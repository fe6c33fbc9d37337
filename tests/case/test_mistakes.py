"""Mistakes of the user end with exit code 2 and one sentence, before any rank starts and with nothing written."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command import PATIENCE, Harness, write_tiny_checkpoint
from safetensors.torch import load_file, save_file
from torch import nn

from tp_harness.case.case import Case
from tp_harness.case.case_file import load_case
from tp_harness.config.options import Options
from tp_harness.errors import UsageError
from tp_harness.verification.api import verify

Tensors = dict[str, torch.Tensor]
BIAS = "block.0.mlp.mlp2_bias"
SPOILED: dict[str, tuple[Callable[[Tensors], object], str]] = {
    "missing-tensor": (lambda t: t.pop(BIAS), f"lacks the tensor {BIAS} of shape [8, 96]."),
    "surplus-tensor": (lambda t: t.update(surplus=torch.ones(2)), "has a tensor surplus [2] that the model has not."),
    "misshapen-tensor": (
        lambda t: t.update({BIAS: torch.ones(8, 95)}), f"tensor {BIAS} has shape [8, 95]; the model needs [8, 96]."
    ),
    "nan": (lambda t: t[BIAS][3].__setitem__(5, float("nan")), f"tensor {BIAS} holds nan at [3, 5]; weights must be"),
    "packed": (lambda t: t.update({f"{BIAS}.blocks": torch.ones(2)}), f"has a tensor {BIAS}.blocks [2] that the model"),
}  # fmt: skip
CASE_ERRORS = {
    "FORGOTTEN": "the plan of own does not say how up.bias is placed: full [64], local [16] on 4 ranks. Give it one of",
    "UNBUILDABLE": "sharded of own, called without arguments at tp 4, raised ArithmeticError: no shards today (before",
    "NO_INPUT": "reference of own, called with its inputs in float64, raised RuntimeError: mat1 and mat2 shap",
    "UNPLACEABLE": "output 0 of own cannot be placed as Shard(dim=0, unit=1): dimension 0 of shape (2, 16, 20)",
    "TEXT": "raised TypeError: the module returned a str without a tensor; tensors are needed (before",
    "TWO": "odd returns 2 outputs (None left out), and `output` of its Case places 1: give it one placement for each.",
    "BARE": "inputs of odd returns a Tensor; a tuple of tensors is needed, for example (x,), or a dict of keyword",
    "WORD": "inputs of odd hold no tensor; a tuple of tensors is needed, for example (x,).",
    "SET": "inputs of odd returns a set; a tuple of tensors is needed, for example (x,), or a dict of keyword argu",
    "MISTAPPED": "unknown submodule of own's reference, named by taps, 'upp'. Did you mean 'up'? Choose from: up,",
    "MISROUTED": "unknown submodule of own's reference, named by routing, 'up.router_logits'.",
    "UNREPEATABLE": "inputs of odd gives other numbers for the same generator, so that no run could be repeated: draw",
    "NO_GENERATOR": "inputs of odd, called with a torch.Generator, raised TypeError: <lambda>() takes 0 positional arg",
    "NAN": "inputs of odd returns nan at [0, 0] of input 0.",
    "NO_NUMBERS": "reference of odd, called without arguments, raised TypeError: Linear.__init__() missing 2 required",
    "NO_SHARD": "sharded of own, called without arguments at tp 4, raised TypeError: Linear.__init__() missing 2 requi",
    "NO_DIMENSION": "down.weight of own cannot be placed as Shard(dim=5, unit=1): a tensor of shape (20, 64) has no di",
    "WORDS": "collectives of own returns ('all_reduce',) at tp 4; a tuple of Collective is needed, as tp_harness.",
    "RIHGT": "unknown case in",
    "os": "cases.py:os is a module; a tp_harness.Case is needed.",
}
OTHER_ERRORS = {
    "truncated-checkpoint": "cannot read the checkpoint file",
    "empty-checkpoint": "holds no .safetensors, .pt or .pth or .bin file.",
    "absent-checkpoint": "does not exist.",
    "unwritable-out": "cannot make the output folder",
    "unknown-backend": "unknown backend 'glo'. Did you mean 'gloo'?",
    "no-process-group": "the ranks of backend local have no torch.distributed group, which the sharded module asks for",
}
ERRORS = {**{name: text for name, (_, text) in SPOILED.items()}, **CASE_ERRORS, **OTHER_ERRORS}


@pytest.fixture(scope="module")
def errors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str]]:
    """What each wrong command ends with: all in one process, because none gets as far as starting ranks."""
    harness = Harness(tmp_path_factory.mktemp("errors"))
    good = write_tiny_checkpoint(harness.home)
    bad = {name: harness.home / f"{name}.safetensors" for name in (*SPOILED, *OTHER_ERRORS)}
    for name, (spoil, _) in SPOILED.items():
        tensors = load_file(good)
        spoil(tensors)
        save_file(tensors, bad[name])
    bad["truncated-checkpoint"].write_bytes(good.read_bytes()[:-100])
    few = ("--draws", "1", "--dtype", "float32")  # tables for exact arithmetic would be made for each command
    commands = {n: ["--checkpoint", str(path), "--component", "mlp", "--tp", "2", *few] for n, path in bad.items()}
    commands["empty-checkpoint"][1] = str(harness.tmp)
    commands |= {name: ["--case", f"{harness.cases}:{name}", "--tp", "4", *few] for name in CASE_ERRORS}
    commands["unwritable-out"] = ["--out", str(good / "out"), "--component", "rmsnorm"]
    commands["unknown-backend"] = ["--backend", "glo"]
    commands["no-process-group"] = ["--case", f"{harness.cases}:RIGHT", "--tp", "4", "--backend", "local"]
    ends = dict(zip(commands, harness.run(*commands.values()), strict=True))
    assert not harness.out.exists() or not list(harness.out.iterdir()), "no run folder, and so no log, is left"
    return ends


@pytest.mark.parametrize("name", ERRORS)
def test_a_mistake_is_one_sentence_before_any_rank_starts(errors: dict[str, tuple[int, str]], name: str) -> None:
    code, text = errors[name]
    assert code == 2
    assert text.startswith("tp-harness: ")
    assert ERRORS[name] in text
    assert text.count("\n") == 1


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("--component mpl", "unknown component 'mpl'. Did you mean 'mlp'? Choose from: rmsnorm, rope, attention, mlp"),
        ("--tp 1,x", "--tp is '1,x'; numbers separated by commas are needed, as 1,2,8,32."),
        ("--tp 3", "tp_degree 3 does not divide num_attention_heads 64"),
        ("--tp 512", "--tp holds 512"),
        ("--dtype flot32", "unknown dtype 'flot32'. Did you mean 'float32'?"),
        ("--init zeros", "unknown init 'zeros'. Choose from: discriminating, constant, tied."),
        ("--model tni", "unknown model 'tni'. Did you mean 'tiny'?"),
        ("--timeout 0", "--timeout is 0; a positive number of seconds is needed."),
        (
            "--case a.py:A --seq 9",
            "a Case brings its own modules and inputs, which --seq would not change; leave it out",
        ),
        ("--wrong", "unknown option --wrong."),
    ],
)
def test_a_wrong_option_needs_no_torch_to_be_refused(tmp_path: Path, given: str, text: str) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "tp_harness", "verify", "--out", "out", *given.split()]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE, check=False)
    said = [line for line in run.stderr.splitlines() if not line.startswith("import time:")]
    assert (run.returncode, len(said), run.stdout) == (2, 1, "")
    assert said[0].startswith(f"tp-harness: {text}")
    assert not re.search(r"\| +torch$", run.stderr, flags=re.MULTILINE)
    assert not list(tmp_path.iterdir())


def test_a_file_without_a_case_and_a_module_for_its_maker_are_said(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("x = 1")
    with pytest.raises(UsageError, match=r"mine.py defines no Case, and nothing called 'CASE'\.$"):
        load_case(f"{file}:CASE")
    for name in ("reference", "sharded"):
        makers = {"reference": nn.Identity, "sharded": nn.Identity, name: nn.Identity()}
        text = f"^{name} of a Case is a module, an instance of Identity; what makes one is needed: the class Identity "
        with pytest.raises(UsageError, match=text):
            Case(name="mine", inputs=lambda _: (), **makers)


def test_a_mistake_from_python_leaves_no_folder_either(tmp_path: Path) -> None:
    options = Options(checkpoint=tmp_path / "absent", components=("mlp",), backend="local", out=tmp_path / "out")
    with pytest.raises(UsageError, match="does not exist"):
        verify(options)
    assert not list((tmp_path / "out").iterdir())
