"""Every fault of the registry is caught where it is active, and proved to be the right code where it is not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command import IN_FLOATS, PATIENCE, Harness
from ladder import options

from tp_harness.backends import choose_backend, run_to_end
from tp_harness.config.model import NeuronConfig
from tp_harness.faults import BY_NAME, FAULTS, GENERIC, GRAPH, SERVED, Fault, find_fault, injected
from tp_harness.faults.fault import always
from tp_harness.faults.ways import all_of, computes, edits, loads, put
from tp_harness.judge.gather import read_outputs
from tp_harness.models.gpt_oss.components import COMPONENTS, component_case
from tp_harness.models.gpt_oss.config import PRESETS, InferenceConfig
from tp_harness.mutation.bench import Bench
from tp_harness.mutation.mutant import try_faults
from tp_harness.parallel.group import Group
from tp_harness.parallel.placements import same_bits
from tp_harness.prepare.prepare import prepare_one
from tp_harness.ranks.job import Task
from tp_harness.results.mutation_score import Trial, remarks, scores

ROOT = Path(__file__).parents[2]
TARGETS = tuple(dict.fromkeys((fault.component, fault.layer) for fault in FAULTS))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    chosen = options(targets=TARGETS, seq=40, degrees=(2, 8, 32))
    return Bench(prepare_one(chosen), tmp_path_factory.mktemp("bench"))


def config(tp: int) -> InferenceConfig:
    neuron = NeuronConfig(batch_size=2, seq_len=40, torch_dtype="float32", tp_degree=tp)
    return InferenceConfig.of(PRESETS["tiny"], neuron)


def check(bench: Bench, fault: Fault, tp: int) -> None:
    for trial in try_faults(bench, [fault], tp):
        assert not trial.bad, f"{trial.dtype}: {trial.outcome}, {trial.reason}; first {trial.first}"
        assert not trial.causes or fault.signature in trial.causes, f"{trial.dtype}: {trial.causes} were named"
        assert (trial.outcome == "inert") >= (not fault.active(config(tp), tp))
        if trial.outcome == "caught" and trial.dtype == "float32":
            assert ("reassembly" in trial.checks) == fault.loads, trial.checks
            assert trial.causes or not fault.signature, f"{fault.signature} was not named"


@pytest.mark.parametrize("name", [fault.name for fault in FAULTS])
def test_a_fault_is_caught_at_2_ranks_or_proved_to_be_right(bench: Bench, name: str) -> None:
    check(bench, find_fault(name), 2)


@pytest.mark.parametrize("name", [f.name for f in FAULTS if f.active(config(8), 8) != f.active(config(2), 2)])
def test_a_fault_that_fares_otherwise_at_8_ranks(bench: Bench, name: str) -> None:
    check(bench, find_fault(name), 8)


@pytest.mark.parametrize("name", [f.name for f in FAULTS if f.active(config(32), 32) != f.active(config(8), 8)])
def test_a_fault_that_fares_otherwise_at_32_ranks(bench: Bench, name: str) -> None:
    check(bench, find_fault(name), 32)


@pytest.mark.slow
@pytest.mark.parametrize("tp", [1, 8, 32])
def test_every_fault_at_the_other_degrees(bench: Bench, tp: int) -> None:
    for fault in FAULTS:
        check(bench, fault, tp)


def test_the_registry_is_in_order() -> None:
    assert len(FAULTS) >= 60
    assert len(BY_NAME) == len(FAULTS) + len(GENERIC) + len(GRAPH) + len(SERVED), "a name is used twice"
    for fault in FAULTS:
        assert fault.component in COMPONENTS
        assert "float32" in fault.visible_in
        case = component_case(fault.component, config(2), fault.layer)
        known = {*case.taps, *(f"output.{i}" for i in range(len(case.outputs)))}
        assert set(fault.flags) <= known, f"{fault.name} flags {set(fault.flags) - known}, which is no tap or output"
        assert injected("", case) is case


# what would be wrong with a fault, or with the harness, is found


def fault_of(apply: object, active: object = always, **fields: object) -> Fault:
    return replace(find_fault("out-bias-dropped"), apply=apply, active=active, **fields)  # type: ignore[arg-type]


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """Try one fault that is not in the registry."""

    def enter(fault: Fault) -> Fault:
        monkeypatch.setitem(BY_NAME, fault.name, fault)  # type: ignore[arg-type]  # a dict
        return fault

    yield enter


def the_trial(bench: Bench, fault: Fault) -> Trial:
    return try_faults(bench, [fault], 2)[0]


def test_a_fault_that_changes_nothing_is_wrong(bench: Bench, only: object) -> None:
    trial = the_trial(bench, only(fault_of(lambda case: case)))  # type: ignore[operator]
    assert (trial.outcome, trial.bad) == ("wrong", True)
    assert trial.reason == "declared active at tp 2, but no bit differs from the clean run"


def test_a_fault_that_is_active_where_it_says_it_is_not_is_wrong(bench: Bench, only: object) -> None:
    fault = fault_of(find_fault("out-bias-dropped").apply, lambda config, tp: tp > 2)
    trial = the_trial(bench, only(fault))  # type: ignore[operator]
    assert (trial.outcome, trial.bad) == ("wrong", True)
    assert trial.reason == "declared inert at tp 2, but float32.locked.output.0 of rank 0 differs from the clean run"


def test_a_fault_that_crashes_is_wrong(bench: Bench, only: object) -> None:
    def crash(module: object, group: object) -> None:
        raise ArithmeticError("not today")

    trial = the_trial(bench, only(fault_of(edits(crash))))  # type: ignore[operator]
    assert trial.outcome == "wrong"
    assert "rank 0 of 2 failed with ArithmeticError: not today" in trial.reason


def test_a_fault_that_the_verdict_accepts_is_missed(bench: Bench, only: object) -> None:
    nudge = computes("out.bias", lambda x, rank, size: x.float() * (1 + 2.0**-22))
    trial = the_trial(bench, only(fault_of(nudge)))  # type: ignore[operator]
    assert (trial.outcome, trial.bad, trial.checks) == ("missed", True, ())


def test_what_the_reassembly_check_alone_sees_counts_as_missed(bench: Bench, only: object) -> None:
    """Ranks that load a wrong shard and yet compute with the right one, all but the last bit."""
    wrong = loads("sinks", lambda placement, full, rank, size: placement.shard(full, 1 - rank, size) * 1)

    def mend(module: Any, group: Group) -> None:
        put(module, "sinks", group.all_gather(module.sinks, 0).chunk(2)[1 - group.rank])
        put(module, "out.bias", module.out.bias.float() * (1 + 2.0**-22))

    trial = the_trial(bench, only(fault_of(all_of(wrong, edits(mend)))))  # type: ignore[operator]
    assert (trial.outcome, trial.checks) == ("missed", ("reassembly",))


def test_scores_and_remarks() -> None:
    of = {"fault": "f", "tp": 2, "dtype": "float32", "expected": "heads"}
    trials = [
        Trial(**of, outcome="caught", first="heads", kinds=("rel_L2",), signature="s", causes=("s",)),
        Trial(
            **of | {"fault": "g"},
            outcome="caught",
            first="norm",
            kinds=("replicas",),
            signature="s",
            causes=("t", "s"),
        ),
        Trial(**of | {"fault": "h"}, outcome="missed"),
        Trial(**of | {"fault": "i"}, outcome="inert"),
        Trial(**of | {"fault": "j", "dtype": "bfloat16"}, outcome="missed", must=False),
        Trial(**of | {"dtype": "exact"}, outcome="caught", first="heads", kinds=("residues",), signature="s"),
    ]
    exact, first, second = scores(trials)
    assert (str(first), first.missed, first.inert, first.first_right) == ("2 of 3", ("h",), ("i",), 1)
    assert (first.named_right, first.signed) == (1, 2), "the best cause counts"
    assert (str(second), [trial.bad for trial in trials]) == ("0 of 1", [False, True, True, False, False, False])
    assert str(exact) == "1 of 1"
    assert remarks(trials) == [
        "g at tp 2 in float32: norm was named as the first wrong one, where heads is declared",
        "h at tp 2 in float32 was missed: nothing rejected it",
        "Seen by replicas alone: g.",
    ]


# on other backends, and from the command line


def test_a_fault_does_on_gloo_what_it_does_on_local_ranks(bench: Bench, tmp_path: Path) -> None:
    """All of them at 2 ranks in one start of processes, compared bit for bit."""
    with choose_backend("gloo").open() as session:
        tasks = tuple(Task(component=f.component, layer=f.layer, draw=0, fault=f.name) for f in FAULTS)
        job = replace(bench.job(tasks[0], 2, taps=True), tasks=tasks, dtypes=("float32",))
        outcome = run_to_end(session, job, log_dir=tmp_path, timeout=PATIENCE)
    assert outcome.ok, outcome.message
    for task in tasks:
        theirs = read_outputs(job, task)
        ours = bench.run(replace(job, tasks=(task,)))
        for rank, output in ours.items():
            names = [n for n, x in output.tensors.items() if not same_bits(x, theirs[rank].tensors[n])]
            assert (task.fault, rank, names) == (task.fault, rank, [])


def test_verify_with_a_fault_fails_and_says_so(tmp_path: Path) -> None:
    harness = Harness(tmp_path)
    given = ["--fault", "sinks-of-rank-0", "--tp", "1,2", "--draws", "1", "--dtype", "float32"]
    assert harness.code(*given) == 1
    record = harness.record()
    assert [(r["component"], r["tp"], r["status"], r["fault"]) for r in record["results"]] == [
        ("attention", 1, "PASS", "sinks-of-rank-0"),
        ("attention", 2, "MISMATCH", "sinks-of-rank-0"),
    ]
    assert record["notes"] == ["fault sinks-of-rank-0 was put in on purpose: Every rank loads the sinks of rank 0."]


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("verify --fault kv-modulo --tp 2", "fault kv-modulo is the right code at tp 2 and this input size"),
        ("verify --fault kv-modulo --component mlp", "fault kv-modulo is one of attention, which was not chosen."),
        (
            "verify --fault kv-modul",
            "unknown fault 'kv-modul'. Did you mean 'kv-modulo'? `tp-harness list faults` shows",
        ),
        ("faults --only part-dropped", "fault part-dropped is for own cases: `tp-harness verify --case FILE.py:NAME"),
        ("faults --tp 2,3", "tp_degree 3 does not divide num_attention_heads 64"),
    ],
)
def test_a_wrong_fault_is_one_sentence(tmp_path: Path, given: str, text: str) -> None:
    command = [sys.executable, "-m", "tp_harness", *given.split()]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (run.returncode, run.stdout, run.stderr.count("\n")) == (2, "", 1)
    assert run.stderr.startswith(f"tp-harness: {text}")


def test_the_command_tries_faults_in_processes(tmp_path: Path) -> None:
    names = ["not-reduced", "kv-modulo", "gate-clamp-symmetric"]
    chosen = [argument for name in names for argument in ("--only", name)]
    command = [sys.executable, "-m", "tp_harness", "faults", "--tp", "2,8", *IN_FLOATS, "--json", *chosen]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (run.returncode, run.stderr) == (0, "")
    trials = json.loads(run.stdout)["trials"]
    assert [(t["fault"], t["dtype"], t["tp"]) for t in trials] == [
        (name, dtype, tp) for name in names for dtype in ("float32", "bfloat16") for tp in (2, 8)
    ]
    outcomes = {(t["fault"], t["dtype"]): t["outcome"] for t in trials}
    assert set(outcomes.values()) == {"caught", "inert", "missed"}
    assert outcomes["gate-clamp-symmetric", "bfloat16"] == "missed"


# the documents


def test_the_walkthrough_in_contributing(tmp_path: Path) -> None:
    """Its very steps, on a copy of the package."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    section = text.partition("## Add a fault")[2].partition("\n## ")[0]
    code = section.partition("```python\n")[2].partition("```")[0]
    shutil.copytree(ROOT / "tp_harness", tmp_path / "tp_harness")
    for name in ("kernels", "launch", "reference"):
        shutil.copytree(ROOT / name, tmp_path / "tp_harness" / name)
    path = tmp_path / "tp_harness" / "models" / "gpt_oss" / "faults" / "norm.py"
    entries = path.read_text()
    assert entries.endswith(")\n")
    entry = "    Fault(" + textwrap.dedent(code).partition("    Fault(")[2]
    assert len(entry.splitlines()) <= 15
    path.write_text(entries.removesuffix(")\n") + entry)
    [command] = [line for line in section.split("`") if line.startswith("tp-harness faults --only")]
    run = run_copy(tmp_path, command.split()[1:])
    assert (run.returncode, run.stderr) == (0, "")
    trials = json.loads(run.stdout)["trials"]
    assert {(t["outcome"], t["first"]) for t in trials} == {("caught", "norm")}
    assert [(t["dtype"], t["tp"]) for t in trials] == [
        (d, tp) for d in ("exact", "float32", "bfloat16") for tp in (2, 8, 32)
    ]
    path.write_text(
        path.read_text().replace('flags=("norm", "output.0"),\n    ),\n)', 'flags=("output.0",),\n    ),\n)')
    )
    wrong = run_copy(tmp_path, [*command.split()[1:], "--tp", "2", "--dtype", "float32"])
    assert wrong.returncode == 1, "another tensor than the declared one went wrong first"


def run_copy(folder: Path, given: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tp_harness", *given, "--json"]
    env = os.environ | {"PYTHONPATH": str(folder)}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=PATIENCE, check=False)


def test_the_page_about_faults_is_current() -> None:
    """Names, words and what is inert where; the trials themselves are not repeated here."""
    lines = (ROOT / "docs" / "faults.md").read_text().partition("## All faults")[2].strip().splitlines()
    header, _, *rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    assert [row[0] for row in rows] == [fault.name for fault in FAULTS], "write it with the command in CONTRIBUTING.md"
    for row, fault in zip(rows, FAULTS, strict=True):
        assert row[1:4] == [str(fault.number or "-"), fault.component, fault.cause]
        for head, cell in zip(header, row, strict=True):
            dtype, _, tp = head.partition(" tp ")
            if tp and dtype == "float32":
                active = fault.active(config(int(tp)), int(tp))
                assert cell == ("caught" if active else "inert"), f"{fault.name}, {head}"
