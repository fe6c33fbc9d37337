"""Causes over a run: what one degree suggests and another contradicts is not told; float32 speaks for bfloat16."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from explained import BLANK

from tp_harness.results.result import Cause, Divergence, Mistake, Result, Status
from tp_harness.verification.agreement import agreed


def cause(name: str) -> Cause:
    return Cause(name=name, sentence=f"{name}.", explained=1.0, residual=1e-7, limit=1e-6)


def wrong(tp: int, *told: str, also: str = "", refuted: str = "", tensor: str = "output.0", **fields: Any) -> Result:
    first = Divergence(tensor=tensor, kind="value", after="", ranks=(0,), index=(0,), actual=1.0, expected=2.0)
    return replace(
        BLANK,
        tp=tp,
        first_divergence=first,
        diagnosis=tuple(map(cause, told)),
        alternatives=tuple(map(cause, filter(None, also.split(",")))),
        refuted=tuple(filter(None, refuted.split(","))),
        **fields,
    )


def names(results: list[Result]) -> list[tuple[str, ...]]:
    return [tuple(c.name for c in result.diagnosis) for result in agreed(results)]


TIMES = "times tp"


def test_what_fits_at_every_degree_is_told() -> None:
    """A factor 0.5 that is missing: at 2 ranks it is like a sum too much."""
    run = [
        wrong(1, "scaled"),
        wrong(2, TIMES, also="scaled"),
        wrong(8, "scaled", refuted=TIMES),
        wrong(32, "scaled", refuted=TIMES),
    ]
    assert names(run) == [("scaled",)] * 4


def test_a_cause_of_every_degree_stays() -> None:
    assert names([wrong(2, TIMES, also="scaled"), wrong(8, TIMES, also="scaled")]) == [(TIMES,)] * 2


def test_of_several_the_one_that_fits_elsewhere_too_is_told() -> None:
    run = [wrong(2, "fused parts exchanged", "gathered elsewhere"), wrong(8, "gathered elsewhere")]
    assert names(run) == [("gathered elsewhere",)] * 2


def test_what_another_degree_contradicts_is_not_told_though_nothing_else_is_known() -> None:
    assert names([wrong(2, "range"), wrong(8, refuted="range,offset")]) == [(), ()]


def test_what_could_not_be_tried_elsewhere_is_not_contradicted() -> None:
    """Key and value heads that are replicated from 8 ranks on, say."""
    assert names([wrong(2, "kv heads in turn"), wrong(8, refuted="range")]) == [("kv heads in turn",), ()]


def test_another_tensor_dtype_layer_or_fault_contradicts_nothing() -> None:
    one = wrong(2, "range")
    others = [
        wrong(8, refuted="range", tensor="tap"),
        wrong(8, refuted="range", dtype="bfloat16"),
        wrong(8, refuted="range", layer=1),
        wrong(8, refuted="range", fault="mean"),
        wrong(8, refuted="range", component="other"),
    ]
    for other in others:
        assert names([one, other])[0] == ("range",)


def test_one_degree_alone_leaves_both_readings() -> None:
    assert names([wrong(2, TIMES, also="scaled,bias x tp")]) == [(TIMES, "scaled")]
    assert names([wrong(2, "summand / tp", also="summand scaled")]) == [("summand / tp", "summand scaled")]
    assert names([wrong(2, "bias x tp", also="scaled")]) == [("bias x tp",)]


def test_a_degree_that_is_right_leaves_one_reading() -> None:
    """A factor that has nothing to do with ranks would be wrong there as well."""
    right = replace(BLANK, tp=1, status=Status.PASS)
    assert names([right, wrong(2, TIMES, also="scaled")])[1] == (TIMES,)


def test_a_degree_that_is_proved_leaves_one_reading() -> None:
    exact = {"dtype": "exact", "component": "mlp"}
    different = wrong(2, TIMES, also="scaled", status=Status.DIFFERENT, **exact)
    assert names([different, wrong(8, tensor="", **exact)])[0] == (TIMES, "scaled")
    proved = replace(BLANK, tp=8, status=Status.PROVED, **exact)
    assert names([different, proved])[0] == (TIMES,)


def test_agreeing_twice_changes_nothing() -> None:
    """A resumed run agrees again."""
    runs = [
        [wrong(1, "scaled"), wrong(2, TIMES, also="scaled"), wrong(8, "scaled", refuted=TIMES)],
        [wrong(2, "range"), wrong(8, refuted="range")],
        [wrong(2, TIMES, also="scaled")],
    ]
    for run in runs:
        once = agreed(run)
        assert agreed(once) == once


def test_float32_speaks_for_bfloat16() -> None:
    [_, other] = agreed([wrong(2, "range"), wrong(2, dtype="bfloat16")])
    assert [c.name for c in other.as_float32] == ["range"]
    assert other.diagnosis == ()


def test_float32_speaks_of_the_same_draw_if_it_can() -> None:
    """Each dtype tells of its worst draw, which may be another; the module is the same."""
    [*_, other] = agreed([wrong(2, "offset"), wrong(2, "range", seed=1), wrong(2, dtype="bfloat16", seed=1)])
    assert [c.name for c in other.as_float32] == ["range"]
    [_, other] = agreed([wrong(2, "offset"), wrong(2, dtype="bfloat16", seed=1)])
    assert [c.name for c in other.as_float32] == ["offset"]


def test_float32_speaks_for_the_same_run_alone() -> None:
    differing: list[dict[str, Any]] = [
        {"layer": 1}, {"component": "other"}, {"fault": "mean"}, {"status": Status.SHAPE},
    ]  # fmt: skip
    for fields in differing:
        assert agreed([wrong(2, "range"), wrong(2, dtype="bfloat16", **fields)])[1].as_float32 == ()
    assert agreed([wrong(2, "range"), wrong(8, dtype="bfloat16")])[1].as_float32 == ()
    assert agreed([wrong(2, "range"), wrong(2, "offset", dtype="bfloat16")])[1].as_float32 == ()
    assert agreed([wrong(2, refuted="range"), wrong(2, dtype="bfloat16")])[1].as_float32 == ()


def test_causes_of_further_mistakes_must_fit_at_every_degree_too() -> None:
    def beside(tp: int, *told: str, **fields: Any) -> Result:
        other = wrong(tp, *told, tensor="total", **fields)
        assert other.first_divergence is not None
        mistake = Mistake(
            divergence=other.first_divergence,
            causes=other.diagnosis,
            alternatives=other.alternatives,
            refuted=other.refuted,
        )
        return replace(wrong(tp, "range"), further=(mistake,))

    run = [
        beside(2, TIMES, also="scaled"),
        beside(8, "scaled", refuted=TIMES),
        wrong(32, refuted=TIMES, tensor="total"),
    ]
    found = agreed(run)
    assert [[c.name for c in result.diagnosis] for result in found] == [["range"], ["range"], []]
    assert [[c.name for m in result.further for c in m.causes] for result in found] == [[], ["scaled"], []]
    assert [[c.name for m in r.further for c in m.causes] for r in agreed(run[:2])] == [["scaled"], ["scaled"]]
