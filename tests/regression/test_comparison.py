"""Comparing two runs: every kind of regression is found, and noise is none."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from compared import CALL, ERROR, MIB, RATIO, TIMES, on_ranks, rank, record, result, timed
from records import exact, proof

from tp_harness.regression.comparison import NEEDED, compare
from tp_harness.regression.rules import LEAST_REPEATS, MEMORY_FLOOR, forward_seconds
from tp_harness.results.result import Forwards, Result, Status


def found(before: Result, after: Result) -> list[tuple[str, str, bool | None]]:
    return [(c.kind, c.what, c.worse) for c in compare(record(before), record(after)).changes]


LATENCY, PEAK, WEIGHTS = "CPU time of all ranks", "peak of a rank above its start", "weights of a rank"
SCHEDULE = ("collectives", "schedule of a rank")
LIMIT = f"limit of {ERROR.metric}"
HALF = replace(CALL, dtype="bfloat16", bytes=CALL.bytes // 2)
# name: what the later run has where the earlier has result(), and what is found; the other way round is not worse.
REGRESSIONS: dict[str, tuple[Result, tuple[str, str]]] = {
    "mismatch": (result(status=Status.MISMATCH), ("verdict", "status")),
    "skipped": (result(status=Status.SKIPPED), ("verdict", "status")),
    "error": (result(gates=(replace(ERROR, value=3.1e-7), RATIO)), ("error", ERROR.metric)),
    "ratio": (result(gates=(ERROR, replace(RATIO, value=1.11))), ("error", RATIO.metric)),
    "nan": (result(gates=(replace(ERROR, value=math.nan), RATIO)), ("error", ERROR.metric)),
    "no-check": (result(checks=()), ("checks", "schedule")),
    "no-gate": (result(gates=(ERROR,)), ("checks", RATIO.metric)),
    "limit": (result(gates=(replace(ERROR, limit=1.2e-6), RATIO)), ("checks", LIMIT)),
    "latency": (timed(*(1.3 * t for t in TIMES)), ("latency", LATENCY)),
    "weights": (on_ranks(weight_bytes=5001), ("memory", WEIGHTS)),
    "peak": (on_ranks(peak_bytes=341 * MIB + MEMORY_FLOOR), ("memory", PEAK)),
    "more-calls": (on_ranks(collectives=(CALL, CALL)), SCHEDULE),
    "more-bytes": (on_ranks(collectives=(replace(CALL, shape=(2, 40, 192), bytes=61440),)), SCHEDULE),
    "operations": (on_ranks(flops=1001), ("operations", "of all ranks")),
}


@pytest.mark.parametrize("name", REGRESSIONS)
def test_every_kind_of_regression_is_found(name: str) -> None:
    after, change = REGRESSIONS[name]
    assert found(result(), after) == [(*change, True)]
    assert all(worse is False for _, _, worse in found(after, result()))  # and is no regression the other way round


NO_CHANGE: dict[str, Result] = {
    "same": result(),
    "other-reason": result(reason="rel_L2 of output.0 is 2e-07"),
    "rounding": result(gates=(replace(ERROR, value=2.9e-7, limit=1.05e-6), replace(RATIO, value=1.09))),
    "a-fifth-slower": timed(*(1.2 * t for t in TIMES)),
    "noisy": timed(0.9e-3, 1.0e-3, 1.3e-3, 1.5e-3, 1.6e-3),  # the median is 0.3 ms more, the scatter 0.7 ms
    "too-few-repeats": timed(*[9.0] * (LEAST_REPEATS - 1)),
    "cold": timed(9.0, warm=False),
    "not-timed": on_ranks(forwards=None),
    "an-arena": on_ranks(peak_bytes=340 * MIB + MEMORY_FLOOR),
    "not-counted": on_ranks(flops=None),
    "call-times": on_ranks(collectives=(replace(CALL, seconds=1.0),)),
}


@pytest.mark.parametrize("name", NO_CHANGE)
def test_noise_is_no_change(name: str) -> None:
    assert found(result(), NO_CHANGE[name]) == []
    assert found(NO_CHANGE[name], result()) == []


def test_the_order_of_sums_in_float64_is_no_change() -> None:
    before, after = (result(dtype="float64", gates=(replace(ERROR, value=value),)) for value in (0.0, 8e-16))
    assert found(before, after) == found(after, before) == []
    assert found(before, replace(after, status=Status.MISMATCH)) == [("verdict", "status", True)]


def test_what_was_exact_must_stay_exact() -> None:
    before, after = (result(gates=(replace(RATIO, value=value),)) for value in (0.0, 1e-9))
    assert found(before, after) == [("error", RATIO.metric, True)]


def test_a_failure_that_fails_otherwise_is_a_change_and_no_regression() -> None:
    before, after = result(status=Status.MISMATCH), result(status=Status.CRASH, ranks=(), gates=(), checks=())
    assert found(before, after) == [("verdict", "status", None)]
    assert found(after, before) == [("verdict", "status", None)]
    assert found(result(status=Status.SKIPPED), after) == [("verdict", "status", True)]


@pytest.mark.parametrize(
    ("before", "after", "worse"),
    [
        ("PROVED", "NOT PROVED", None),
        ("PROVED", "DIFFERENT", True),
        ("NOT PROVED", "DIFFERENT", True),
        ("DIFFERENT", "NOT PROVED", None),
        ("NOT PROVED", "PROVED", False),
        ("DIFFERENT", "PROVED", False),
        ("DIFFERENT", "CRASH", None),
    ],
)
def test_what_is_not_proved_any_more_is_told_and_is_no_regression(before: str, after: str, worse: bool | None) -> None:
    one, other = (exact(Status(word)) for word in (before, after))
    assert found(one, other) == [("verdict", "status", worse)]
    assert compare(record(one), record(other)).exit_code == bool(worse)


def test_a_proof_that_rests_on_fewer_points_is_a_regression() -> None:
    one, two = exact(of=proof(draws=1, bound=1e-7)), exact(of=proof(draws=2, primes=(1048919, 2098127)))
    assert found(two, one) == [("checks", "points modulo a prime", True)]
    assert found(one, two) == []


def test_a_wrong_module_that_costs_less_is_no_improvement() -> None:
    cheap = replace(on_ranks(collectives=(), flops=1, weight_bytes=1), status=Status.MISMATCH)
    assert found(result(), cheap) == [("verdict", "status", True)]
    assert found(cheap, result()) == [("verdict", "status", False)]


def test_another_order_is_a_change_and_names_its_first_call() -> None:
    one, two = (on_ranks(collectives=calls) for calls in ((CALL, HALF), (HALF, CALL)))
    [change] = compare(record(one), record(two)).changes
    assert change.worse is None
    assert change.reason == f"first at call 0: {CALL} became {HALF}"
    assert change.before == change.after == "2 calls, 46,080 B"


def test_latency_is_wall_time_of_the_slowest_rank_on_neuron_cores_and_cpu_time_elsewhere() -> None:
    forwards = [Forwards(wall_s=(s,) * 5, cpu_s=(1.0,) * 5, warm=True) for s in (1.0, 2.0)]
    slow = result(ranks=tuple(rank(i, forwards=f) for i, f in enumerate(forwards)))
    assert forward_seconds(slow, wall=True) == (2.0,) * 5
    assert forward_seconds(slow, wall=False) == (2.0,) * 5
    waits = [replace(f, wall_s=(9.0,) * 5) for f in forwards]
    waiting = result(ranks=tuple(rank(i, forwards=f) for i, f in enumerate(waits)))
    assert compare(record(slow), record(waiting)).changes == ()
    [change] = compare(record(slow, backend="neuron"), record(waiting, backend="neuron")).changes
    assert (change.what, change.before, change.after) == ("wall time of the slowest rank", "2 s", "9 s")
    fifth = timed(*(1.2 * t for t in TIMES))  # a device's time is steadier
    assert [c.kind for c in compare(record(backend="neuron"), record(fifth, backend="neuron")).changes] == ["latency"]


# ------------------------------------------------------------------------------------------- different runs


OTHER_RUNS: dict[str, tuple[dict[str, Any], str, set[str]]] = {
    "model": ({"options": {"model": {"hidden_size": 128}}}, "model.hidden_size: 96 -> 128", set(NEEDED)),
    "seed": ({"options": {"seed": 1}}, "seed: 0 -> 1", {"checks", "error", "latency", "operations"}),
    "kernels": ({"options": {"kernels": "nki"}}, "kernels: torch -> nki", {"latency", "memory", "operations"}),
    "backend": ({"backend": "xla"}, "backend: gloo -> xla", {"checks", "latency", "memory"}),
    "cpus": ({"environment": {"cpus": 64}}, "cpus: 2 -> 64", {"latency", "memory"}),
    "torch": ({"environment": {"packages": {"torch": "2.14.0"}}}, "packages.torch: 2.13.0 -> 2.14.0",
              {"latency", "memory"}),
    "new-option": ({"options": {"fault": "roll"}}, "fault: not said -> roll", set()),
    "out": ({"options": {"out": "elsewhere"}}, "", set()),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHER_RUNS)
def test_what_the_runs_do_not_share_is_said_and_what_it_explains_is_not_compared(name: str) -> None:
    values, said, left_out = OTHER_RUNS[name]
    worse = [after for after, _ in REGRESSIONS.values() if after.status is Status.PASS]
    befores = [result(component=f"c{i}") for i in range(len(worse))]
    afters = [replace(after, component=f"c{i}") for i, after in enumerate(worse)]
    comparison = compare(record(*befores), record(*afters, **values))
    assert comparison.differences == ((said,) if said else ())
    assert {line.partition(":")[0] for line in comparison.not_compared} == left_out
    assert {change.kind for change in comparison.changes} == NEEDED.keys() - left_out
    failed = compare(record(), record(result(status=Status.MISMATCH), **values))
    assert failed.exit_code == 1  # a verdict is compared in any case


def test_rows_of_one_run_are_named() -> None:
    comparison = compare(record(result(), result(tp=8)), record(result(), result(component="rope")))
    assert comparison.only_before == ("mlp layer 0 tp 8 float32",)
    assert comparison.only_after == ("rope layer 0 tp 2 float32",)
    assert (comparison.rows, comparison.changes, comparison.exit_code) == (1, (), 0)


def test_a_run_that_did_not_finish_is_no_proof() -> None:
    [change] = compare(record(), record(finished=False)).regressions
    assert (change.row, change.after) == ("the run", "not finished")
    assert compare(record(finished=False), record()).regressions == ()
