"""`tp-harness verify` as a user runs it: real processes, exit codes, run.json, and nothing left behind."""

from __future__ import annotations

import json
import signal
import time
from importlib.metadata import version
from pathlib import Path

import psutil
import pytest
from command import IN_FLOATS, PATIENCE, Harness, write_tiny_checkpoint
from living import lives

RAISES_ON_RANK_1 = """
from tp_harness.models.gpt_oss.modules.mlp import NeuronGPTOSSMLPBlock
def forward(self, x):
    if self.group.rank == 1:
        raise ArithmeticError("rank 1 cannot add")
    return self.group.all_reduce(x)
NeuronGPTOSSMLPBlock.forward = forward
"""


@pytest.fixture
def harness(tmp_path: Path) -> Harness:
    return Harness(tmp_path)


def test_two_components_at_three_degrees_pass(harness: Harness) -> None:
    options = ["--component", "attention", "--component", "mlp", "--tp", "1,2,8", "--draws", "1", "--seed", "3"]
    options += IN_FLOATS
    assert harness.code(*options) == 0
    record = harness.record()
    layers = [("attention", 0), ("attention", 1), ("mlp", 0)]
    expected = [(n, la, tp, d) for tp in (1, 2, 8) for n, la in layers for d in ("float32", "bfloat16")]
    assert [(r["component"], r["layer"], r["tp"], r["dtype"]) for r in record["results"]] == expected
    assert {r["status"] for r in record["results"]} == {"PASS"}
    assert (record["schema"], record["finished"], record["exit_code"], record["backend"]) == (1, True, 0, "gloo")
    assert record["environment"]["packages"]["torch"] == version("torch")
    assert record["command"] == f"tp-harness verify --out {harness.out} {' '.join(options)}"
    assert (record["options"]["seed"], record["options"]["draws"]) == (3, 1)
    for result in record["results"]:
        assert result["seed"] == 3
        assert result["gate"]["value"] <= result["gate"]["limit"]
        assert [check["passed"] for check in result["checks"]] == [True] * 4
        assert [r["rank"] for r in result["ranks"]] == list(range(result["tp"]))
        assert all(len(r["collectives"]) == (result["tp"] > 1) and r["weight_bytes"] > 0 for r in result["ranks"])
        logs = sorted(path.name for path in Path(result["log_dir"]).iterdir())
        assert logs == [f"rank{r}.log" for r in range(result["tp"])]


OWN = {
    "RIGHT": (0, "PASS", "of output.0 is "),
    "WRONG": (1, "MISMATCH", "replicas: output.0: rank 1 holds "),
    "NOTHING": (4, "VOID", "nothing was sharded at tp 4"),
}


def test_an_own_case(harness: Harness) -> None:
    options = ["--tp", "4", "--draws", "1", *IN_FLOATS]
    ends = harness.run(*(["--case", f"{harness.cases}:{name}", *options] for name in OWN))
    assert ends == [(code, "") for code, _, _ in OWN.values()]
    for (name, (code, status, reason)), record in zip(OWN.items(), harness.records(), strict=True):
        results = record["results"]
        of = [(r["component"], r["tp"], r["dtype"], r["status"]) for r in results]
        assert of == [("own", 4, dtype, status) for dtype in ("float32", "bfloat16")]
        assert all(reason in result["reason"] for result in results)
        assert record["exit_code"] == code
        calls = [call["kind"] for call in results[0]["ranks"][3]["collectives"]]
        assert calls == (["all_reduce"] if name == "RIGHT" else [])
        found = [result["first_divergence"] and result["first_divergence"]["tensor"] for result in results]
        assert found == ["output.0" if name == "WRONG" else None] * 2
        worst = [result["worst"] is None for result in results]
        assert worst == [status == "VOID"] * 2, "nothing is wrong with the elements of a void run"


def test_a_rank_that_raises(harness: Harness) -> None:
    options = ["--component", "mlp", "--component", "rmsnorm", "--tp", "2", "--draws", "1", "--dtype", "float32"]
    assert harness.code(*options, patch=RAISES_ON_RANK_1) == 3
    assert harness.statuses() == [("mlp", 2, "float32", "CRASH"), ("rmsnorm", 2, "float32", "PASS")]
    crashed, passed = harness.record()["results"]
    assert "rank 1 of 2 failed with ArithmeticError: rank 1 cannot add" in crashed["reason"]
    assert crashed["traceback"].rstrip().endswith("ArithmeticError: rank 1 cannot add")
    assert "in forward" in crashed["traceback"]
    assert "ArithmeticError: rank 1 cannot add" in (Path(crashed["log_dir"]) / "rank1.log").read_text()
    assert (Path(crashed["log_dir"]).name, Path(passed["log_dir"]).name) == ("tp2", "tp2-start1")


CHOOSY = {
    "CHOOSY": ("bfloat16", "float32", "PASS"),
    "CHOOSY_32": ("float32", "bfloat16", "PASS"),
    "CHOOSY_WRONG": ("bfloat16", "float32", "MISMATCH"),
    "CHOOSY_32_WRONG": ("float32", "bfloat16", "MISMATCH"),
}


def test_a_crash_in_one_dtype_leaves_the_other_its_verdict(harness: Harness) -> None:
    """With a control of its own, and an explanation."""
    assert harness.code(*harness.named(CHOOSY), "--tp", "2", *IN_FLOATS) == 3
    record = harness.record()
    for name, (crashed, other, status) in CHOOSY.items():
        results = {r["dtype"]: r for r in record["results"] if r["component"] == f"own ({name})"}
        assert {dtype: r["status"] for dtype, r in results.items()} == {other: status, crashed: "CRASH"}
        assert f"no kernel for {crashed}" in results[crashed]["reason"]
        assert results[other]["draws"] == 2
        controls = [c["dtype"] for c in record["controls"] if c["component"] == f"own ({name})"]
        assert controls == [other] or (controls == [] and status == "MISMATCH"), "one beside what passed"
        assert bool(results[other]["first_divergence"]) == (status == "MISMATCH")


def test_a_rank_that_sleeps(harness: Harness) -> None:
    options = ["--tp", "2", "--draws", "1", "--dtype", "float32", "--timeout", "3"]
    assert harness.code("--case", f"{harness.cases}:SLEEPY", *options) == 3
    assert harness.statuses() == [("own", 2, "float32", "TIMEOUT")]
    assert "3 s" in harness.record()["results"][0]["reason"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_in_the_middle_of_a_run(harness: Harness, number: signal.Signals) -> None:
    run = harness.start(["--case", f"{harness.cases}:SLEEPY", "--tp", "1,2", "--draws", "1", "--dtype", "float32"])
    asleep = harness.home / "asleep"
    end = time.monotonic() + PATIENCE
    while not asleep.exists() and run.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    children = psutil.Process(run.pid).children(recursive=True)
    assert len(children) >= 3, "a zygote and two ranks at least"
    assert list(harness.shm.glob("tp-harness-*"))
    run.send_signal(number)
    output, errors = run.communicate(timeout=PATIENCE)
    [(code, text)] = json.loads(output.splitlines()[-1])
    word = {"SIGINT": "interrupted", "SIGTERM": "ended by SIGTERM"}[number.name]
    assert (code, text, errors) == (130, f"tp-harness: {word}; every rank was ended.\n", "")
    assert not [child for child in children if lives(child)]
    harness.nothing_is_left()
    assert harness.statuses() == [("own", 1, "float32", "PASS")]
    assert (harness.record()["finished"], harness.record()["exit_code"]) == (False, None)


def test_bfloat16_alone(harness: Harness) -> None:
    options = ["--component", "rmsnorm", "--component", "unembedding", "--tp", "2", "--dtype", "bfloat16"]
    assert harness.code(*options) == 0
    assert harness.statuses() == [(name, 2, "bfloat16", "PASS") for name in ("rmsnorm", "unembedding")]
    assert all(result["gate"]["metric"] == "R of output.0" for result in harness.record()["results"])


def test_constant_weights(harness: Harness) -> None:
    """Equal embedding rows give equal outputs everywhere, in which nothing could be seen."""
    options = ["--component", "attention", "--component", "embedding", "--layer", "1", "--tp", "8"]
    assert harness.code(*options, "--dtype", "float32", "--init", "constant") == 4
    assert harness.statuses() == [("attention", 8, "float32", "PASS"), ("embedding", 8, "float32", "VOID")]
    assert harness.record()["results"][1]["reason"].startswith("the control passed: output.0 rolled by one")


def test_a_checkpoint(harness: Harness, tmp_path: Path) -> None:
    checkpoint = write_tiny_checkpoint(tmp_path).parent
    assert harness.code("--checkpoint", str(checkpoint), "--component", "mlp", "--tp", "2", "--draws", "1") == 0
    assert harness.record()["options"]["checkpoint"] == str(checkpoint)
    assert "bytes of checkpoint" in harness.record()["results"][0]["checks"][0]["detail"]


def test_a_crash_in_every_dtype_ends(harness: Harness) -> None:
    """Each dtype is tried by itself once, and no control is left to be tried."""
    assert harness.code("--case", f"{harness.cases}:RAISING", "--tp", "2", *IN_FLOATS) == 3
    record = harness.record()
    assert [(r["dtype"], r["status"]) for r in record["results"]] == [("float32", "CRASH"), ("bfloat16", "CRASH")]
    assert record["controls"] == []
