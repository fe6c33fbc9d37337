"""Reading and judging compiled programs, from recorded texts: no torch-xla needed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tp_harness.launch import LaunchOutcome

from tp_harness import backends
from tp_harness.backends.xla import of_ranks
from tp_harness.errors import UsageError
from tp_harness.faults import GRAPH
from tp_harness.judge.program_checks import collectives_check, compilation_check
from tp_harness.parallel.group import collective
from tp_harness.results.result import Program, ProgramCollective
from tp_harness.xla import graph_diff, hlo
from tp_harness.xla.virtual_cores import environment

# Written by torch-xla 2.9.0 for four ranks; cut.
TEXT = """
%AddComputation.12 (x.13: f32[], y.14: f32[]) -> f32[] {
  ROOT %add.15 = f32[] add(f32[] %x.13, f32[] %y.14)
}
ENTRY %IrToHlo.68 (p0.1: f32[], p1.5: f32[3,4]) -> (f32[3,4], bf16[3,16], f32[3,4]) {
  %all-reduce.18 = (f32[3,4]{1,0}, f32[]) all-reduce(f32[3,4]{1,0} %get-tuple-element.16, \
f32[] %get-tuple-element.17), replica_groups={{0,1},{2,3}}, to_apply=%AddComputation.12
  %get-tuple-element.19 = f32[3,4]{1,0} get-tuple-element((f32[3,4]{1,0}, f32[]) %all-reduce.18), index=0
  %all-gather.46 = bf16[3,16]{1,0} all-gather(bf16[3,4]{1,0} %add.45), replica_groups={{0,1,2,3}}, dimensions={1}
  %reduce-scatter.62 = f32[3,4]{1,0} reduce-scatter(f32[3,16]{1,0} %add.57), replica_groups={}, dimensions={1}, \
to_apply=%AddComputation.58
}
"""
PAIRS, ALL = ((0, 1), (2, 3)), ((0, 1, 2, 3),)
SUM = ProgramCollective(kind="all_reduce", groups=ALL, shape=(3, 4), dtype="float32", bytes=48)
PROGRAM = Program(fingerprint="5c1a" * 8, compiles=1, collectives=(SUM,), fallbacks=())


def test_the_collectives_of_a_text() -> None:
    assert hlo.collectives(TEXT, 4) == (
        replace(SUM, groups=PAIRS),
        ProgramCollective(kind="all_gather", groups=ALL, shape=(3, 4), dtype="bfloat16", bytes=24),
        ProgramCollective(kind="reduce_scatter", groups=ALL, shape=(3, 16), dtype="float32", bytes=192),
    )


@pytest.mark.parametrize(
    ("call", "why"),
    [
        (replace(SUM, groups=((0, 1), (2,))), "does not share 4 ranks out into groups of one size"),
        (replace(SUM, groups=((0, 1, 2),)), "does not share 4 ranks out into groups of one size"),
        (replace(SUM, dtype="bfloat16"), "sums in bfloat16"),
    ],
)
def test_collectives_that_cannot_run(call: ProgramCollective, why: str) -> None:
    assert hlo.cannot_run((SUM,), 4) is None
    assert hlo.cannot_run((replace(SUM, groups=PAIRS),), 4) is None  # wrong, and it runs
    assert why in str(hlo.cannot_run((SUM, call), 4))
    assert "collective 1 of the program, all_reduce [3, 4]" in str(hlo.cannot_run((SUM, call), 4))


METADATA = 'metadata={{op_type="x" op_name="x" source_file="/home/me/modules/embedding.py" source_line={}}}'


def text(start: int, *more: str) -> str:
    lines = (
        f"  %constant.{start} = s64[] constant({start}), {METADATA.format(58)}",
        f"  %p{start}.4 = f32[3,4]{{1,0}} parameter({start}), {METADATA.format(57)}",
        f"  ROOT %slice.1{start} = f32[3,1]{{1,0}} slice(f32[3,4]{{1,0}} %p{start}.4), slice={{[0:3], [{start}:2]}}, "
        + METADATA.format(59),
        *more,
    )
    return "ENTRY %x {\n" + "\n".join(lines) + "\n}"


def test_where_two_programs_part() -> None:
    assert graph_diff.difference(text(0), text(1), 0, 3) == (
        "modules/embedding.py:58: `s64[] constant(0)` on rank 0, `s64[] constant(1)` on rank 3; "
        "modules/embedding.py:59: `f32[3,1] slice(p), slice={[0:3], [0:2]}` on rank 0, "
        "`f32[3,1] slice(p), slice={[0:3], [1:2]}` on rank 3"
    )
    extra = f"  %all-reduce.9 = f32[] all-reduce(f32[] %x.1), {METADATA.format(60)}"
    assert graph_diff.difference(text(0, extra), text(0), 0, 1) == (
        "modules/embedding.py:60: `f32[] all-reduce(x)` on rank 0, nothing of it on rank 1"
    )
    assert "too long to be written out" in graph_diff.difference(text(0), text(0), 0, 1)


def test_a_program_is_compiled_once_and_stays_on_the_device() -> None:
    assert compilation_check(PROGRAM, 4).passed
    assert compilation_check(replace(PROGRAM, compiles=4), 4).detail.endswith("compiled 4 times")
    assert not compilation_check(replace(PROGRAM, compiles=4), 4).passed
    assert not compilation_check(replace(PROGRAM, fallbacks=("aten::nonzero",)), 4).passed


@pytest.mark.parametrize(
    ("calls", "detail"),
    [
        ((), "the compiled program has 0 collectives instead of 1"),
        ((replace(SUM, groups=PAIRS),), "all_reduce [3, 4] float32 in groups 0-1, 2-3 instead of"),
        ((replace(SUM, dtype="bfloat16", bytes=24),), "all_reduce [3, 4] bfloat16 in groups 0-3 instead of"),
        ((replace(SUM, kind="all_gather"),), "all_gather [3, 4] float32 in groups 0-3 instead of"),
    ],
)
def test_the_program_s_collectives_are_the_planned_ones(calls: tuple[ProgramCollective, ...], detail: str) -> None:
    planned = (collective("all_reduce", 4, (3, 4), torch.float32),)
    clean = collectives_check(PROGRAM, planned, 4)
    assert (
        clean.passed
        and clean.detail == "1 collectives of 48 bytes per rank, as planned, all over 4 ranks, sums in float32"
    )
    assert collectives_check(PROGRAM, None, 4).detail == "1 collectives of 48 bytes per rank, sums in float32"
    wrong = collectives_check(replace(PROGRAM, collectives=calls), planned, 4)
    assert not wrong.passed and detail in wrong.detail


def test_a_call_of_subgroups_has_their_replica_groups() -> None:
    planned = (collective("all_reduce", 2, (3, 4), torch.float32),)
    pairs = replace(PROGRAM, collectives=(replace(SUM, groups=PAIRS),))
    right = collectives_check(pairs, planned, 4, [PAIRS])
    assert right.passed
    assert "as planned, over groups of 2 ranks" in right.detail
    for other in (((0, 2), (1, 3)), ALL, ()):  # other pairs, all ranks, and none that are known
        assert not collectives_check(pairs, planned, 4, [other]).passed


def test_a_broadcast_appears_as_a_gather() -> None:
    gathered = ProgramCollective(kind="all_gather", groups=ALL, shape=(1, 3), dtype="float32", bytes=12)
    recorded = (collective("broadcast", 4, (3,), torch.float32),)
    assert collectives_check(replace(PROGRAM, collectives=(gathered,)), recorded, 4).passed


def test_what_torch_xla_finds_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=2")
    assert environment(32) == {
        "PJRT_DEVICE": "CPU",
        "CPU_NUM_DEVICES": "32",
        "XLA_THREAD_POOL_SIZE": "128",
        "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_backend_optimization_level=2",
    }


def test_without_torch_xla_the_backend_says_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(
        UsageError, match=r"backend xla cannot run here: torch-xla is not installed in .* `make test-xla`"
    ):
        backends.choose_backend("xla")
    assert backends.choose_backend("auto").name == "gloo"


def ended(**fields: object) -> LaunchOutcome:
    values = {"ok": False, "kind": "crash", "message": "rank 0 of 1 failed", "size": 1, "failed_rank": 0} | fields
    return LaunchOutcome(**values)  # type: ignore[arg-type]  # fields of LaunchOutcome


def test_how_the_ranks_of_one_process_ended(tmp_path: Path) -> None:
    log = tmp_path / "rank0.log"
    raised = of_ranks(ended(error="ValueError: no", thread=5), 8, log)
    assert (raised.failed_rank, raised.size, raised.error) == (5, 8, "ValueError: no")
    assert raised.message == f"rank 5 of 8 failed with ValueError: no; log of all ranks: {log}"
    killed = of_ranks(ended(signal_name="SIGKILL"), 8, log)
    assert killed.message == f"the process that holds all ranks ended with SIGKILL; log of all 8 ranks: {log}"
    log.write_text("first\nE0000 rendezvous.cc:92] This thread has been waiting for 5 seconds and may be stuck\nlast\n")
    assert "XLA aborted the process, because ranks waited" in of_ranks(ended(signal_name="SIGABRT"), 8, log).message
    done = of_ranks(ended(ok=True, kind="ok", failed_rank=None), 8, log)
    assert (done.ok, done.message) == (True, "all 8 ranks finished")


def test_the_page_on_graph_faults_has_every_one() -> None:
    page = (Path(__file__).parents[2] / "docs" / "graph-faults.md").read_text()
    named = [line.split(" | ")[0].strip("| ") for line in page.splitlines() if line.startswith("| ")]
    assert named[2:] == ["(no fault)"] * 3 + [fault.name for fault in GRAPH], "run the command that the page names"
