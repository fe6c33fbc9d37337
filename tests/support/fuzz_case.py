"""Hostile files with a Case: each part is right, or one of the wrong ones that users have thought of or might."""

from __future__ import annotations

import random
from pathlib import Path

from fuzz_attempt import attempt, no_ranks

PLACEMENTS = [
    "Shard(0)", "Shard(1)", "Shard(-1)", "Shard(7)", "Shard(0, 3)", "Shard('x')", "Shard(0.5)", "Shard(0, 0)",
    "Replicate()", "Partial()", "Replicate", "None", "0", "'Shard(0)'", "()", "[]", "(Shard(0), Replicate())",
]  # fmt: skip
PARTS: dict[str, list[str]] = {
    "name": ["'own'", "''", "None", "7", "'a/b'", "'[red]'", "'x' * 400", "'a\\nb'", "'\\x1b[2J'", "'..'", "b'own'"],
    "reference": ["MLP", "None", "MLP()", "lambda: None", "lambda: 1 / 0", "lambda: MLP(3)", "nn.Identity", "int",
                  "lambda x: MLP()", "lambda: torch.relu", "lambda: sys.exit(5)", "nn.Flatten",
                  "lambda: nn.Linear(0, 4)"],
    "sharded": ["lambda: MLP(ranks())", "None", "MLP", "lambda: 1 / 0", "lambda: MLP(ranks() + 1)", "nn.Identity",
                "lambda: sys.exit(0)", "lambda: dist.broken()", "lambda: MLP(0)", "lambda: 7", "object"],
    "inputs": ["lambda g: (torch.randn(2, 4, 12, generator=g),)", "None", "lambda g: torch.ones(2, 12)", "lambda: ()",
               "lambda g: ()", "lambda g: (1, 2)", "lambda g: (torch.ones(2, 11),)", "lambda g: None",
               "lambda g: (torch.ones(0, 12),)", "lambda g: (torch.ones(2, 12, dtype=torch.int64),)",
               "lambda g: (torch.full((2, 12), float('nan')),)", "lambda g: [torch.ones(2, 12)]",
               "lambda g: (torch.ones(2, 12).to_sparse(),)", "lambda g: (torch.ones(2, 12, device='meta'),)",
               "lambda g: 1 / 0", "lambda g: (x for x in ())", "lambda g: (torch.ones(2, 12, dtype=torch.complex64),)"],
    "more": ["", "unknown=1", "reduction=-1", "reduction='x'", "collectives=7", "collectives=lambda tp: 7",
             "routing=('nowhere',)", "routing=7", "replicated=True", "prefix=None", "prefix='a.'",
             "layer=-1", "in_dtype=lambda m, d: None", "in_dtype=7", "input_placements=(Shard(0),)",
             "input_placements=(7,)", "input_placements=7", "output=()", "output=None"],
    "tail": ["", "raise SystemExit(3)", "1 / 0", "CASE = 7", "del CASE", "import nowhere", "def", "CASE.name = 'x'",
             "raise BaseException('x')", "\0", "x = ("],
}  # fmt: skip
CASE = """
import sys
import torch, torch.distributed as dist
from torch import nn
from tp_harness import Case, Partial, Replicate, Shard
def ranks():
    return dist.get_world_size()
class MLP(nn.Module):
    def __init__(self, ranks=1):
        super().__init__()
        self.up, self.down = nn.Linear(12, 64 // ranks), nn.Linear(64 // ranks, 20, bias=False)
    def forward(self, x):
        return self.down(torch.relu(self.up(x)))
"""


def fuzz_case(folder: Path, chance: random.Random) -> str:
    """A user's file with a Case whose parts may be wrong."""
    parts = {name: choices[0] if chance.random() < 0.7 else chance.choice(choices) for name, choices in PARTS.items()}
    names = ["up.weight", "up.bias", "down.weight"]
    right = dict(zip(names, ["Shard(0)", "Shard(0)", "Shard(1)"], strict=True))
    plan = {n: right[n] if chance.random() < 0.8 else chance.choice(PLACEMENTS) for n in names if chance.random() < 0.9}
    if chance.random() < 0.1:
        plan[chance.choice(["nowhere", "", "up", "7"])] = chance.choice(PLACEMENTS)
    entries = ", ".join(f"{name!r}: {placement}" for name, placement in plan.items())
    whole = "{" + entries + "}" if chance.random() < 0.95 else chance.choice(["None", "7", "[]", "{1: 2}", "'x'"])
    output = "" if chance.random() < 0.8 or "output" in parts["more"] else f"output={chance.choice(PLACEMENTS)}, "
    fields = ", ".join(f"{name}={parts[name]}" for name in ("name", "reference", "sharded", "inputs"))
    text = f"{CASE}\nCASE = Case({fields}, plan={whole}, {output}{parts['more']})\n{parts['tail']}\n"
    (folder / "own.py").write_text(text)
    spec = (
        "own.py:CASE" if chance.random() < 0.9 else chance.choice(["own.py:nn", "own.py:", "own.py:CAES", "own:CASE"])
    )
    with no_ranks(folder, weights=True):
        return attempt(["verify", "--case", spec, "--tp", chance.choice(["2", "4", "1,32"]), "--out", "out"])
