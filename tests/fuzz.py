"""Hostile input to `tp-harness`: each ends with exit code 2 and one sentence, or is good and gets as far as the ranks.

    python tests/fuzz.py --count 500    # inputs per kind; prints a table, and what failed

A failing input is printed with what it needs to be repeated. No rank is ever started, no weight written.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import io
import json
import random
import resource
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from tp_harness import backends, cli, material
from tp_harness.config import PRESETS
from tp_harness.options import Options, as_record, resolve
from tp_harness.record import open_record
from tp_harness.result import Gate, Result, Status
from tp_harness.weights import TensorSpec, write_checkpoint

HANG_SECONDS = 120  # until an input counts as hanging and the program is ended with its stack
MEMORY = 4 << 30  # bytes that an input may make the program take

JUNK: list[Any] = [
    None, True, False, 0, -1, 1, 2, 3, 7, 64, 97, 2**31, 2**39, 2**63, 10**400, 0.0, -0.5, 1e-30, 1e300, float("nan"),
    float("inf"), "", "x", "nan", "64", "gloo", "[red]x[/red]", "\x1b[2J\x07", "\u202egnp", "\ud800", "a\nb", "é" * 300,
    [], {}, [1], [[]], ["x", "x"], {"a": 1}, {"": None}, [None] * 9, {"factor": -1},
]  # fmt: skip
WORDS = [
    "verify", "list", "compare", "model", "--component", "--tp", "--model", "--batch", "--seq", "--layer", "--dtype",
    "--backend", "--seed", "--draws", "--init", "--kernels", "--repeats", "--checkpoint", "--case", "--out", "--resume",
    "--timeout", "--tp=", "--seed=", "--", "-", "-x", "--wrong", "--comp", "mlp", "rmsnorm", "attention", "transformer",
    "tiny", "gpt-oss-20b", "gpt-oss-120b", "x.json", "float32", "bfloat16", "gloo", "auto", "constant", "nki", "torch",
    "components", "models", "backends", "1", "2", "8", "32", "1,2", "2,2", "1,,2", "0", "-1", "3", "1e9", "nan", "inf",
    "-inf", "1048575", "1048576", "99999999999999999999", "1_000", "٣", "", " ", ".", "..", "/", "/dev/null", "nowhere",
    "nowhere.py:CASE", ":", "a\nb", "\x1b[31m", "[bold]", "\ud800", "x" * 5000, "x\0y",
]  # fmt: skip
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
             "routing=('nowhere',)", "routing=7", "replicated=True", "prefix=None", "prefix='a.'", "lazy=True",
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
NEEDED = (
    TensorSpec(name="block.0.attn.norm.scale", shape=(96,), dtype=torch.float32),
    TensorSpec(name="norm.scale", shape=(96,), dtype=torch.bfloat16),
)


class ReachedError(BaseException):
    """The input was good: ranks would start now."""


@dataclass
class Tally:
    """What became of the inputs of one kind."""

    kind: str
    ends: Counter[str] = field(default_factory=Counter)
    failures: dict[str, int] = field(default_factory=dict)  # what went wrong -> a draw that repeats it
    seconds: float = 0.0


def attempt(arguments: list[str]) -> str:
    """Run the command; "refused" (code 2, one sentence) or "accepted".

    Raises:
        AssertionError: anything else.
    """
    out, err = io.StringIO(), io.StringIO()
    faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what a user's module makes torch say is the user's
            code = cli.main(arguments)
    except ReachedError:
        return "accepted"
    except SystemExit as leaving:  # --help and --version, as argparse has it
        code = leaving.code if isinstance(leaving.code, int) else 99
    except BaseException as error:
        raise AssertionError(f"{type(error).__name__}: {error}\n{traceback.format_exc()[-1500:]}") from None
    finally:
        faulthandler.cancel_dump_traceback_later()
    text = err.getvalue()
    if code == 0 and not text:
        return "accepted"
    assert code == 2, f"exit code {code}: {text[-3000:]}"
    assert text.startswith("tp-harness: ") and text.endswith("\n"), f"no sentence: {text!r:.500}"
    assert text[:-1].isprintable(), f"not one printable line: {text!r:.500}"
    assert len(text) < 5000, f"{len(text)} characters"
    return "refused"


def reach(*_arguments: object, **_options: object) -> NoReturn:
    """Stands for what happens when the input is good."""
    raise ReachedError


class NoRanks:
    """A backend and its session, in which nothing is ever started."""

    name, blind_spots, owns_terminal, starts_anew = "none", "it sees nothing", True, True
    process_group, weight_copies = True, 0
    start = staticmethod(reach)

    def available(self) -> str | None:
        """It needs nothing."""
        return None

    def open(self, *_options: object, **_more: object) -> NoRanks:
        """Itself."""
        return self

    def __enter__(self) -> NoRanks:
        return self

    def __exit__(self, *_error: object) -> None:
        pass


@contextlib.contextmanager
def no_ranks(folder: Path, *, weights: bool = False) -> Iterator[None]:
    """Inside, good input ends with ReachedError: at once, or with `weights` once the single-core runs are made."""
    choose = backends.choose_backend

    def chosen(name: str) -> NoRanks:
        choose(name)
        return NoRanks()

    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.chdir(folder) if sys.version_info >= (3, 11) else contextlib.nullcontext())
        stack.enter_context(mock.patch.object(backends, "choose_backend", chosen))
        stack.enter_context(mock.patch.object(material, "SHM", folder))
        if not weights:
            for step in ("write_checkpoint", "write_tiles", "expect"):
                stack.enter_context(mock.patch.object(material, step, reach))
        yield


def mutate(value: Any, chance: random.Random, edits: int) -> Any:
    """A JSON value with some of its parts replaced by junk, removed, or repeated."""
    value = json.loads(json.dumps(value))
    for _ in range(edits):
        at, parent, key = value, None, None
        while isinstance(at, (dict, list)) and at and (parent is None or chance.random() < 0.8):
            parent, key = at, chance.choice(list(at) if isinstance(at, dict) else range(len(at)))
            at = at[key]
        if parent is None:
            return chance.choice(JUNK)
        action = chance.choice(["junk", "junk", "junk", "remove", "swap"])
        if action == "remove":
            del parent[key]
        elif action == "swap" and isinstance(parent, dict):
            parent[chance.choice(list(parent))] = at
        else:
            parent[key] = chance.choice(JUNK)
    return value


def spoil(content: bytes, chance: random.Random) -> bytes:
    """The same bytes with some of them changed, cut, or repeated."""
    at = chance.randrange(len(content) + 1)
    return chance.choice(
        [
            lambda: content[:at],
            lambda: content[:at] + bytes([chance.randrange(256)]) + content[at + 1 :],
            lambda: content[:at] + content[max(0, at - 20) :],
            lambda: content + content,
            lambda: b"\xef\xbb\xbf" + content,
        ]
    )()


def json_bytes(value: Any, chance: random.Random) -> bytes:
    """As JSON (with Python's NaN), sometimes spoiled."""
    content = json.dumps(value).encode()
    return spoil(content, chance) if chance.random() < 0.2 else content


CONFIG = {
    **{f: v for f, v in vars(PRESETS["tiny"]).items() if not f.startswith("rope_")},
    "model_type": "gpt_oss", "rms_norm_eps": 1e-5, "rope_theta": 150000, "hidden_act": "silu",
    "layer_types": ["sliding_attention", "full_attention"], "num_local_experts": 8,
    "rope_scaling": {"factor": 32.0, "beta_slow": 1.0, "beta_fast": 32.0, "rope_type": "yarn", "truncate": False},
}  # fmt: skip


def fuzz_config(folder: Path, chance: random.Random) -> str:
    """A config.json with wrong, missing and odd values."""
    (folder / "config.json").write_bytes(json_bytes(mutate(CONFIG, chance, chance.randrange(1, 4)), chance))
    component = chance.choice(["rmsnorm", "rope", "attention", "mlp", "embedding", "transformer"])
    degrees = chance.choice(["1", "2", "1,2,8,32", "7"])
    arguments = ["verify", "--model", "config.json", "--component", component, "--tp", degrees, "--out", "out"]
    with no_ranks(folder):
        return attempt(arguments)


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


def fuzz_cli(folder: Path, chance: random.Random) -> str:
    """Words in any order, mostly after `verify`."""
    words = [chance.choice(WORDS) for _ in range(chance.randrange(1, 7))]
    flags = [w for w in WORDS if w.startswith("--") and len(w) > 3]
    if chance.random() < 0.5:
        words = [word for _ in range(chance.randrange(1, 4)) for word in (chance.choice(flags), chance.choice(WORDS))]
    with no_ranks(folder):
        return attempt([*(["verify"] if chance.random() < 0.9 else []), *words])


def fuzz_resume(folder: Path, chance: random.Random) -> str:
    """A run.json given to --resume with wrong, missing and odd values."""
    resolved = resolve(Options(components=("rmsnorm", "mlp"), degrees=(1, 2), draws=1))
    gate = Gate(metric="rel_L2 of output.0", value=1e-7, limit=1e-5, reason="a reason")
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


KINDS: dict[str, Callable[[Path, random.Random], str]] = {
    "config": fuzz_config,
    "case": fuzz_case,
    "header": fuzz_header,
    "cli": fuzz_cli,
    "resume": fuzz_resume,
}


def fuzz(kind: str, count: int, number: int = 0) -> Tally:
    """Try `count` inputs of a kind, drawn by hypothesis from a fixed seed."""
    tally = Tally(kind)

    @seed(number)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.integers(0, 2**64 - 1))
    def run(draw: int) -> None:
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            try:
                tally.ends[KINDS[kind](Path(folder), random.Random(draw))] += 1
            except AssertionError as error:
                tally.ends["failed"] += 1
                tally.failures.setdefault(_kind_of(str(error)), draw)

    start = time.process_time()
    run()
    tally.seconds = time.process_time() - start
    return tally


def _kind_of(text: str) -> str:
    """Where and with which exception, so that a hundred inputs with one cause are told once."""
    lines = [line.strip() for line in text.splitlines()]
    places = [line for line in lines if line.startswith("File ") and "/tp_harness/" in line]
    last = next((line for line in reversed(lines) if line and "this is a bug" not in line), "")
    return f"{last:.300} <- {' <- '.join(places[-3:][::-1])}" if places else text[:500]


def main() -> int:
    """Print the table; 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=500, metavar="N", help="inputs per kind")
    parser.add_argument("--kind", choices=KINDS, action="append", help="repeatable; default: all")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the inputs")
    parser.add_argument("--draw", type=int, metavar="N", help="only this input of one --kind, as a failure names it")
    arguments = parser.parse_args()
    if arguments.draw is not None:
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            print(KINDS[arguments.kind[0]](Path(folder), random.Random(arguments.draw)))
            return 0
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, taken + MEMORY))
    failed = 0
    print(f"{'kind':8} {'inputs':>7} {'refused':>8} {'accepted':>9} {'CPU s':>7}  tracebacks and hangs")
    for kind in arguments.kind or KINDS:
        tally = fuzz(kind, arguments.count, arguments.seed)
        ends = tally.ends
        failed += ends["failed"]
        counts = f"{ends.total():7} {ends['refused']:8} {ends['accepted']:9} {tally.seconds:7.1f}"
        print(f"{kind:8} {counts} {ends['failed']:21}", flush=True)
        for text, draw in tally.failures.items():
            print(f"  --kind {kind} --draw {draw}: {text}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
