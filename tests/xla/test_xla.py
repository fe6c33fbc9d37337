"""Components on virtual cores: torch-xla's graphs, XLA's compiler and collectives, in processes of their own."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import command
import pytest
from command import Harness
from own_mlp import MLP

from tp_harness.faults import GRAPH

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("torch_xla") is None, reason="torch-xla is not installed here: `make test-xla`"
    ),
    pytest.mark.timeout(600),
]

CASES = (
    MLP
    + """
import time
from tp_harness.parallel.group import current_group

class Grouped(MLP):
    def __init__(self):
        self.group = current_group()
        super().__init__(self.group.size)

    def reduce(self, x):
        return self.group.all_reduce(x.float()).to(x.dtype)

class Distributed(MLP):
    def __init__(self):
        super().__init__(dist.get_world_size())

    def reduce(self, x):
        dist.all_reduce(x)
        return x

class Raising(Grouped):
    def reduce(self, x):
        if self.group.rank == 1:
            raise ArithmeticError("no sums today")
        return super().reduce(x)

class Sleepy(Grouped):
    def reduce(self, x):
        if self.group.rank == 1:
            time.sleep(3600)
        return super().reduce(x)

def case(sharded):
    plan = {"up.weight": Shard(0), "up.bias": Shard(0), "down.weight": Shard(1)}
    draw = lambda generator: (torch.randn(2, 16, 12, generator=generator),)
    return Case(name="own", reference=MLP, sharded=sharded, plan=plan, inputs=draw)

GROUPED, DISTRIBUTED, RAISING, SLEEPY = (case(c) for c in (Grouped, Distributed, Raising, Sleepy))
"""
)


@pytest.fixture
def harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Harness:
    monkeypatch.setattr(command, "PATIENCE", 500.0)  # a compiler at work on a busy machine
    return Harness(tmp_path)


def own(harness: Harness, name: str, *options: str) -> tuple[int, list[dict[str, Any]]]:
    """Exit code and results of a run of one of `CASES` on two virtual cores."""
    cases = harness.home / "xla_cases.py"
    cases.write_text(CASES)
    code = harness.code("--backend", "xla", "--case", f"{cases}:{name}", "--tp", "2", "--draws", "1", *options)
    return code, harness.record()["results"]


@pytest.mark.parametrize("tp", [1, 2, 8, 32])
def test_every_component_is_one_program(harness: Harness, tp: int) -> None:
    assert harness.code("--backend", "xla", "--tp", str(tp)) == 0
    results = harness.record()["results"]
    assert len(results) == 20
    assert {r["status"] for r in results} == {"PASS"}
    for result in results:
        checks = {check["name"]: check["passed"] for check in result["checks"]}
        assert checks["program"] and checks["program schedule"]
        program = result["program"]
        assert (program["compiles"], program["fallbacks"]) == (1, [])
        assert all(call["groups"] == [list(range(tp))] for call in program["collectives"])
        assert all(call["dtype"] == "float32" for call in program["collectives"] if call["kind"] == "all_reduce")
    assert len({r["program"]["fingerprint"] for r in results}) == 20  # two draws share theirs


def test_xla_sees_every_fault_of_the_compiled_path_and_gloo_hardly_any(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    words = (sys.executable, "-m", "tp_harness", "graph-faults", "--tp", "2", "--markdown", str(page))
    done = subprocess.run(words, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.strip("| ").split(" | ") for line in page.read_text().splitlines() if line.startswith("| ")]
    cells = {row[0]: row[2:] for row in rows[2:]}
    assert cells.pop("(no fault)") == ["passes at tp 2"] * 3
    assert list(cells) == [fault.name for fault in GRAPH]
    blind = {name for name, (gloo, _, _) in cells.items() if gloo == "not seen at tp 2"}
    assert blind == set(cells) - {"sum-in-bfloat16"}
    assert all(xla.startswith("seen at tp 2, by ") for _, xla, _ in cells.values())


def test_a_rank_dependent_graph_is_named_with_its_line_and_exit_code(harness: Harness) -> None:
    assert harness.code("--backend", "xla", "--tp", "8", "--fault", "rank-in-the-graph", "--dtype", "float32") == 1
    [result] = harness.record()["results"]
    assert result["status"] == "MISMATCH"
    assert result["reason"].startswith("program: rank-dependent graph: 8 ranks trace 3 different programs")
    assert "faults/graph.py:" in result["reason"] and "`s64[] constant(0)`" in result["reason"]


def test_an_own_case_with_a_group(harness: Harness) -> None:
    code, results = own(harness, "GROUPED", "--dtype", "float32")
    assert code == 0
    assert all("1 collectives" in check["detail"] for r in results for check in r["checks"] if "sched" in check["name"])


def test_an_own_case_with_torch_distributed(harness: Harness) -> None:
    """XLA on a CPU does not sum in bfloat16, and says so."""
    code, results = own(harness, "DISTRIBUTED")
    assert code == 1
    assert [(r["dtype"], r["status"]) for r in results] == [("float32", "PASS"), ("bfloat16", "MISMATCH")]
    assert "sums in bfloat16" in results[1]["reason"]
    assert results[0]["program"]["collectives"][0]["kind"] == "all_reduce"


def test_a_rank_that_raises(harness: Harness) -> None:
    code, results = own(harness, "RAISING")
    assert code == 3
    assert {r["status"] for r in results} == {"CRASH"}
    assert results[0]["reason"].startswith(
        "rank 1 of 2 failed with ArithmeticError: no sums today (forward of own in float32; "
    )
    assert 'raise ArithmeticError("no sums today")' in results[0]["traceback"]


def test_a_rank_that_never_comes(harness: Harness) -> None:
    code, results = own(harness, "SLEEPY", "--timeout", "20")
    assert code == 3
    assert {r["status"] for r in results} == {"TIMEOUT"}
    reason, stacks = results[0]["reason"], results[0]["traceback"]
    assert "did not finish own.0.d0 within 20 s: all 2 ranks were still running, and rank 1 is not where" in reason
    rank_0, rank_1 = stacks.split("\nrank 1, innermost call first:\n")
    assert rank_0.startswith("rank 0, innermost call first:\n") and "in exchange" in rank_0
    assert rank_1.partition("\n")[0].endswith("in reduce")
    assert "torch_xla" not in stacks, "what starts ranks only distracts"


COLLECTIVES = """
import json, torch
from tp_harness.parallel.group import Group
from tp_harness.xla.virtual_cores import run_on_cores
found = {}
def entry(group, device):
    x = torch.arange(8.0).view(2, 4) * (group.rank + 1)
    def forward():
        put = device.put(x)
        return {
            "all_reduce": group.all_reduce(put + 0),
            "all_gather": group.all_gather(put, -1),
            "reduce_scatter": group.reduce_scatter(put, -1),
            "broadcast": group.broadcast(put, 2),
        }
    with torch.inference_mode():
        outputs, program = device.run(forward)
    found[group.rank] = {name: tensor.tolist() for name, tensor in outputs.items()}
    found[group.rank]["calls"] = [call.kind for call in program.collectives]
failure = run_on_cores(4, entry)
print(json.dumps(found) if failure is None else failure.traceback)
"""


def script(text: str) -> str:
    done = subprocess.run((sys.executable, "-c", text), capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_all_four_collectives() -> None:
    base = [[0.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 7.0]]
    for rank, found in json.loads(script(COLLECTIVES)).items():
        assert found["all_reduce"] == [[10 * x for x in row] for row in base]
        assert found["all_gather"] == [[(r + 1) * x for r in range(4) for x in row] for row in base]
        assert found["reduce_scatter"] == [[10 * row[int(rank)]] for row in base]
        assert found["broadcast"] == [[3 * x for x in row] for row in base]
        assert sorted(found["calls"]) == ["all_gather", "all_gather", "all_reduce", "reduce_scatter"]


ALONE = """
import os
from tp_harness.xla.virtual_cores import environment
os.environ.update(environment(1))
from tp_harness.xla.group import XLAGroup
try:
    XLAGroup(2)
except RuntimeError as error:
    print(error)
"""


def test_a_world_of_another_size_is_refused() -> None:
    assert script(ALONE) == "2 ranks were started, but torch-xla sees 1: sums would be partial"
