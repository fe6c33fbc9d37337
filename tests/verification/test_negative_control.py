"""Every run puts a fault in at each degree; if the verdict accepts it, nothing at that degree has passed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from command import IN_FLOATS, Harness
from ladder import options

from tp_harness.config.dtypes import DTYPES
from tp_harness.config.options import Options, resolve
from tp_harness.faults import find_fault
from tp_harness.judge.judge import judge
from tp_harness.models.gpt_oss import FAMILY
from tp_harness.mutation.bench import open_bench
from tp_harness.ranks.job import Task
from tp_harness.results.run_record import read_run
from tp_harness.verification import negative_control
from tp_harness.verification.negative_control import PLAIN, candidates, control_dtype

# Nothing is rejected any more: every gate is open and every check passes.
ACCEPTS_ALL = """
from dataclasses import replace
from tp_harness.judge import judge
from tp_harness.verification import degrees
from tp_harness.results.result import Status
honest = judge.judge
def accept(evidence, blank):
    result = honest(evidence, blank)
    gates = tuple(replace(gate, limit=1e30) for gate in result.gates)
    checks = tuple(replace(check, passed=True) for check in result.checks)
    return replace(result, status=Status.PASS, reason="accepted", gates=gates, checks=checks, flips=())
degrees.judge = accept
"""
ALL = tuple((name, 0) for name in FAMILY.components)


@pytest.fixture
def harness(tmp_path: Path) -> Harness:
    return Harness(tmp_path)


def test_one_fault_per_degree_is_put_in_and_rejected(harness: Harness) -> None:
    given = ["--component", "attention", "--component", "mlp", "--tp", "1,2,8", "--draws", "1", "--backend", "local"]
    assert harness.code(*given) == 0
    [path] = harness.out.iterdir()
    found = read_run(path).controls
    assert [(c.tp, c.rejected, c.dtype) for c in found] == [(tp, True, "float32") for tp in (1, 2, 8)]
    chosen = resolve(Options(components=("attention", "mlp"), degrees=(1, 2, 8)))
    assert [c.fault for c in found] == [candidates(chosen, tp)[0].name for tp in (1, 2, 8)]
    assert all(c.reason for c in found)
    assert {r["fault"] for r in harness.record()["results"]} == {""}


def test_a_verdict_that_accepts_the_fault_is_void(harness: Harness) -> None:
    given = ["--component", "attention", "--tp", "2", "--draws", "1", "--dtype", "float32", "--layer", "0"]
    experts = ["--component", "mlp", "--tp", "2", "--draws", "1", "--dtype", "float32", "--backend", "local"]
    ends = harness.run([*given, "--backend", "local"], experts, patch=ACCEPTS_ALL)
    assert ends == [(4, ""), (4, "")]
    of_attention, of_experts = harness.records()
    [result] = of_attention["results"]
    assert (result["component"], result["tp"], result["dtype"], result["status"]) == ("attention", 2, "float32", "VOID")
    [name] = [c["fault"] for c in of_attention["controls"]]
    assert result["reason"].startswith(
        f"the control passed: fault {name}, put into attention layer 0 in float32, was not rejected: "
    )
    [result] = of_experts["results"]
    assert result["status"] == "VOID"
    assert "in float32 on the first 4 tokens of each row, was not rejected: accepted" in result["reason"]


def test_without_a_control_the_record_says_so(harness: Harness) -> None:
    given = ["--component", "rmsnorm", "--tp", "2", "--draws", "1", "--no-fault-control", "--backend", "local"]
    assert harness.code(*given, *IN_FLOATS) == 0
    assert harness.record()["controls"] == []
    assert harness.record()["notes"] == ["--no-fault-control: nothing shows that these checks reject a mistake"]


def test_an_own_case_has_a_control_in_the_same_start_of_processes(harness: Harness) -> None:
    assert harness.code("--case", f"{harness.cases}:RIGHT", "--tp", "1,4", "--draws", "1", *IN_FLOATS) == 0
    found = harness.record()["controls"]
    assert [(c["tp"], c["component"], c["rejected"]) for c in found] == [(1, "own", True), (4, "own", True)]
    assert {c["fault"] for c in found} <= {"shard-rolled", "part-dropped"}
    assert sorted(path.name for path in Path(harness.record()["results"][0]["log_dir"]).parent.iterdir()) == [
        "tp1",
        "tp4",
    ]


def test_a_fault_that_changes_nothing_is_no_control(harness: Harness) -> None:
    """Weights of 0.5 are the same wherever they are rolled to: another fault is drawn."""
    patch = "from tp_harness.faults import GENERIC\nfrom tp_harness.verification import negative_control as control\n"
    patch += "control.GENERIC = GENERIC[:2]\n"
    patch += "control.Random = type('First', (), dict(__init__=lambda *a: None, sample=lambda self, pool, k: pool[:k]))"
    given = [
        "--case",
        f"{harness.cases}:RIGHT",
        "--tp",
        "2",
        "--draws",
        "1",
        "--init",
        "constant",
        "--dtype",
        "float32",
    ]
    given += ["--backend", "gloo"]
    assert harness.code(*given, patch=patch) == 0
    assert [c["fault"] for c in harness.record()["controls"]] == ["part-dropped"]


# The first fault tried is one that does nothing.
INERT_FIRST = """
from dataclasses import replace
from tp_harness import faults
from tp_harness.verification import negative_control
fit = negative_control.candidates
nothing = replace(faults.find_fault("alpha-1"), name="nothing", apply=lambda case: case)
faults.BY_NAME["nothing"] = nothing
negative_control.candidates = lambda options, tp: [nothing, *fit(options, tp)]
"""


def test_among_experts_a_fault_is_put_in_on_the_first_tokens(harness: Harness) -> None:
    given = ["--component", "mlp", "--tp", "2", "--draws", "1", "--dtype", "float32", "--backend", "local"]
    assert harness.run(given, [*given, "--seq", "3"]) == [(0, ""), (0, "")]
    [found], [of_short] = (record["controls"] for record in harness.records())
    assert (found["tokens"], found["rejected"]) == (negative_control.TOKENS["mlp"], True)
    assert of_short["tokens"] == 0


def test_first_tokens_are_run_without_the_fault_too_if_it_is_not_rejected(harness: Harness) -> None:
    """What they give is compared bit for bit: the fault did nothing, and is no control."""
    given = ["--component", "mlp", "--tp", "2", "--draws", "1", "--dtype", "float32", "--backend", "local"]
    assert harness.code(*given, patch=INERT_FIRST) == 0
    [found] = harness.record()["controls"]
    assert found["fault"] != "nothing"
    assert found["rejected"]
    logs = Path(harness.record()["results"][0]["log_dir"]).parent
    assert sorted(path.name for path in logs.iterdir()) == ["tp2", "tp2-start1", "tp2-start2"]


@pytest.mark.parametrize("tp", [1, 8])
def test_first_tokens_alone_are_right_without_a_fault_and_wrong_with_one(tp: int) -> None:
    """For every fault that may be drawn, so that no sound run is taken back."""
    run, tokens = options(targets=(("mlp", 0),), degrees=(tp,)), negative_control.TOKENS["mlp"]
    faults = ["", *(fault.name for fault in candidates(run, tp))]
    assert len(faults) > 10
    with open_bench(run) as bench:
        for fault in faults:
            task = Task(component="mlp", layer=0, draw=0, fault=fault, dtype="float32", tokens=tokens)
            ranks = bench.run(bench.job(task, tp))
            result = judge(bench.evidence(task, tp, "float32", ranks), bench.blank(task, tp, "float32"))
            assert result.gates[0].metric == "rel_L2 of output.0"
            assert bool(set(result.rejections) - {"reassembly"}) == bool(fault), (fault, result.reason)


@pytest.mark.parametrize("tp", [1, 2, 8, 32])
def test_candidates_are_active_visible_and_of_the_run(tp: int) -> None:
    drawn = {fault.name for seed in range(60) for fault in candidates(options(targets=ALL, seq=40, seed=seed), tp)}
    assert "gate-clamp-symmetric" not in drawn, "too near to rounding: a right run must not become void by it"
    assert len(drawn) > 30, "drawn at random from many"
    for name in drawn:
        fault = find_fault(name)
        assert fault.layer == 0
        assert not fault.heavy
        assert fault.active(negative_control.config_at(options(seq=40), tp), tp)


def test_candidates_depend_on_seed_dtype_and_kernels() -> None:
    run = options(targets=ALL, seq=40)
    assert candidates(run, 8) == candidates(run, 8)
    assert candidates(run, 8) != candidates(replace(run, seed=1), 8)
    assert control_dtype(run) == "float32"
    rounded = replace(run, dtypes=("bfloat16",))
    assert control_dtype(rounded) == "bfloat16"
    for seed in range(40):
        assert all("bfloat16" in f.visible_in for f in candidates(replace(rounded, seed=seed), 8))
        assert all(f.loads for f in candidates(replace(run, kernels="nki", seed=seed), 8))
    for dtype in DTYPES:
        alone = replace(run, dtypes=(dtype,))
        assert (control_dtype(alone), PLAIN[dtype] > 0, len(candidates(alone, 8)) > 30) == (dtype, True, True)
    assert candidates(replace(run, fault="not-reduced"), 8) == []
    assert candidates(replace(run, fault_control=False), 8) == []
    assert candidates(replace(run, targets=(("rope", 0),), batch=1, seq=1), 1) == []
