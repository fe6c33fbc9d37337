"""Running `tp-harness verify` in processes of its own, and holding it to leaving nothing behind."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from warm import Program, server

from tp_harness.checkpoint.checkpoint import write_checkpoint
from tp_harness.config.model import NeuronConfig
from tp_harness.models.gpt_oss.components import component_case
from tp_harness.models.gpt_oss.config import PRESETS, InferenceConfig
from tp_harness.prepare.oracle import parameter_specs
from tp_harness.prepare.random_weights import discriminating

PATIENCE = 120.0  # seconds until a test gives up; never the measure of a pass

# Runs the argument lists of argv[2] (JSON) one after the other; prints [[code, text on stderr], ...] at the end.
# Shared memory is the private folder argv[1], because other runs of this machine use /dev/shm as well.
DRIVER = """
import contextlib, io, json, signal, sys
from pathlib import Path
from tp_harness import cli
from tp_harness.prepare import prepare
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test runner in the background would have it ignored
prepare.SHM = Path(sys.argv[1])
{patch}
ends = []
for sys.argv[1:] in json.loads(sys.argv[2]):
    with contextlib.redirect_stderr(io.StringIO()) as errors:
        code = cli.main()
    ends.append((code, errors.getvalue()))
print(json.dumps(ends))
"""

CASES = """
import os, time
from pathlib import Path
import torch
import torch.distributed as dist
from torch import nn
from tp_harness import Case, Shard

class MLP(nn.Module):
    def __init__(self, ranks=1):
        super().__init__()
        self.up, self.down = nn.Linear(12, 64 // ranks), nn.Linear(64 // ranks, 20, bias=False)
        self.bias = nn.Parameter(torch.zeros(20))

    def forward(self, x):
        return self.reduce(self.down(torch.relu(self.up(x)))) + self.bias

    def reduce(self, x):
        return x

class Forgetful(MLP):
    def __init__(self):
        super().__init__(dist.get_world_size())

class Sharded(Forgetful):
    def reduce(self, x):
        dist.all_reduce(x)
        return x

class Sleepy(Sharded):
    def reduce(self, x):
        if dist.get_rank() == 1:
            Path(os.environ["ASLEEP"]).write_text(str(os.getpid()))
            time.sleep(3600)
        return super().reduce(x)

class Choosy(Sharded):
    lacks, wrong = "bfloat16", False

    def reduce(self, x):
        if x.dtype == getattr(torch, self.lacks):
            raise ArithmeticError(f"no kernel for {self.lacks}")
        return x if self.wrong else super().reduce(x)

def choosy(**fields):
    return case(type("Choosy", (Choosy,), fields))

class Unbuildable(MLP):
    def __init__(self):
        raise ArithmeticError("no shards today")

def case(sharded, plan=("up.weight", "up.bias"), down=Shard(1), inputs=(2, 16, 12), **fields):
    plan = {name: Shard(0) for name in plan} | ({"down.weight": down} if down else {})
    draw = lambda generator: (torch.randn(*inputs, generator=generator),)
    return Case(name="own", reference=MLP, sharded=sharded, plan=plan, inputs=draw, **fields)

class Raising(Sharded):
    def reduce(self, x):
        raise ArithmeticError("no sums today")

RAISING = case(Raising)
CHOOSY, CHOOSY_32 = choosy(), choosy(lacks="float32")
CHOOSY_WRONG, CHOOSY_32_WRONG = choosy(wrong=True), choosy(lacks="float32", wrong=True)
RIGHT, WRONG, NOTHING = case(Sharded), case(Forgetful), case(MLP, plan=(), down=None)
FORGOTTEN, SLEEPY, UNBUILDABLE = case(Sharded, plan=("up.weight",)), case(Sleepy), case(Unbuildable)
class Answers(nn.Module):
    def __init__(self, answer):
        super().__init__()
        self.weight, self.answer = nn.Parameter(torch.ones(1)), answer

    def forward(self, *x):
        return self.answer(x[0] * self.weight)

def answering(answer, inputs=lambda generator: (torch.randn(2, 16, 12, generator=generator),), **fields):
    module = lambda: Answers(answer)
    return Case(name="odd", reference=module, sharded=module, replicated=True, inputs=inputs, **fields)

TEXT, TWO = answering(lambda x: "x"), answering(lambda x: (x, None, x), output=Shard(0))
BARE, WORD, SET = (answering(abs, lambda g, x=x: x) for x in (torch.randn(2, 12), ("x",), {1, 2}))
MISTAPPED, MISROUTED = case(Sharded, taps={"upp": Shard(-1)}), case(Sharded, routing=("up",))
UNREPEATABLE = answering(abs, lambda generator: (torch.rand(2, 12),))
NO_GENERATOR, NAN = (answering(abs, f) for f in (lambda: 0, lambda g: (torch.full((2, 12), float("nan")),)))
NO_NUMBERS = Case(name="odd", reference=nn.Linear, sharded=Sharded, inputs=lambda g: ())
NO_SHARD = case(nn.Linear)
NO_DIMENSION, WORDS = case(Sharded, down=Shard(5)), case(Sharded, collectives=lambda tp: ("all_reduce",))
UNPLACEABLE, NO_INPUT = case(Sharded, output=Shard(0)), case(Sharded, inputs=(2, 16, 13))
"""


LIBRARIES = (  # that take seconds to import in each of many processes
    "torch.distributed.tensor.parallel",
    "torch._dynamo",
    "transformers.models.gpt_oss.modeling_gpt_oss",
    "transformers.models.llama.modeling_llama",
    "transformers.models.qwen3_moe.modeling_qwen3_moe",
)
IN_FLOATS = ("--dtype", "float32", "--dtype", "bfloat16")  # where nothing is said of exact arithmetic


@dataclass
class Harness:
    """A private place to run in, one run at a time."""

    home: Path
    libraries: tuple[str, ...] = ()  # that its programs find loaded

    def __post_init__(self) -> None:
        self.shm, self.tmp, self.out = (self.home / name for name in ("shm", "tmp", "out"))
        self.shm.mkdir()
        self.tmp.mkdir()
        self.cases = self.home / "cases.py"
        self.cases.write_text(CASES)

    def start(self, *argument_lists: list[str], patch: str = "") -> Program:
        out = ["--out", str(self.out)]
        lists = [["verify", *([] if "--resume" in given else out), *given] for given in argument_lists]
        environment = {"TMPDIR": str(self.tmp), "ASLEEP": str(self.home / "asleep")}
        driver = DRIVER.format(patch=patch)
        return server(*self.libraries).start(driver, str(self.shm), json.dumps(lists), environment=environment)

    def run(self, *argument_lists: list[str], patch: str = "") -> list[tuple[int, str]]:
        """Exit code and text on stderr of each; nothing may be left."""
        output, errors = self.start(*argument_lists, patch=patch).communicate(timeout=PATIENCE)
        assert not errors, errors
        self.nothing_is_left()
        return [(code, text) for code, text in json.loads(output.splitlines()[-1])]

    def named(self, names: Iterable[str]) -> list[str]:
        """The options that name these Cases of its file."""
        return [word for name in names for word in ("--case", f"{self.cases}:{name}")]

    def code(self, *given: str, patch: str = "") -> int:
        """The exit code of one run that says nothing on stderr."""
        [(code, text)] = self.run(list(given), patch=patch)
        assert not text, text
        return code

    def record(self) -> dict[str, Any]:
        [record] = self.records()
        return record

    def records(self) -> list[dict[str, Any]]:
        """Of all runs, in their order."""
        paths = sorted(self.out.glob("*/run.json"), key=lambda path: path.stat().st_mtime_ns)
        return [json.loads(path.read_text()) for path in paths]

    def statuses(self) -> list[tuple[str, int, str, str]]:
        return [(r["component"], r["tp"], r["dtype"], r["status"]) for r in self.record()["results"]]

    def processes(self) -> list[int]:
        """Ids of the live processes of runs, however deep and in whatever session."""
        return server(*self.libraries).processes()

    def nothing_is_left(self) -> None:
        assert not self.processes()
        assert not list(self.shm.iterdir())
        assert not list(self.tmp.iterdir())


def harness_of(folder: Path, cases: str) -> Harness:
    """One whose file of Cases has this text, and whose programs find torch's libraries loaded."""
    harness = Harness(folder, LIBRARIES)
    harness.cases.write_text(cases)
    return harness


def verified(folder: Path, cases: str, names: Iterable[str], code: int, *given: str, patch: str = "") -> dict[str, Any]:
    """The record of a run of these Cases of a file of this text, with one draw, that ends with `code`."""
    harness = harness_of(folder, cases)
    assert harness.code(*harness.named(names), "--draws", "1", *given, patch=patch) == code
    return harness.record()


def write_tiny_checkpoint(folder: Path) -> Path:
    """A whole tiny model, as a user would bring it."""
    config = InferenceConfig.of(PRESETS["tiny"], NeuronConfig())
    specs = parameter_specs(component_case("transformer", config, 0))
    path = folder / "model.safetensors"
    write_checkpoint(path, specs, lambda spec: discriminating(spec.name, spec.shape, 7))
    return path
