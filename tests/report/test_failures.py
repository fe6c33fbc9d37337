"""One mistake is one paragraph, and two are two: grouping by what results hold."""

from __future__ import annotations

from dataclasses import replace

from records import gate, new_record, ratio, result, shown
from report_pages import PAGES, Path

from tp_harness.report.failure_text import details, sentence
from tp_harness.report.failures import failures
from tp_harness.results.result import Cause, Check, Divergence, Mistake, Result, Status

BIAS = Cause(name="bias x tp", sentence="down.bias is added once per rank", explained=1.0, residual=1e-7, limit=1e-6)
TWICE = replace(BIAS, name="scaled 2", sentence="down is 2 times what it should be")


def divergence(tensor: str = "down", **values: object) -> Divergence:
    fields = {"kind": "value", "after": "act", "ranks": (0, 1), "index": (0, 3), "actual": 2.0, "expected": 1.0}
    return Divergence(tensor=tensor, gate=gate(0.5, tensor=tensor), **(fields | values))  # type: ignore[arg-type]


def wrong(
    tp: int, dtype: str = "float32", cause: Cause | None = BIAS, tensor: str = "down", name: str = "mine"
) -> Result:
    return result(
        name,
        tp,
        Status.MISMATCH,
        dtype=dtype,
        reason=f"told at tp {tp} in {dtype}",
        gates=(gate(0.1) if dtype == "float32" else ratio(9.0),),
        first_divergence=divergence(tensor),
        diagnosis=(cause,) if cause else (),
        hypotheses=12,
    )


def clean(tp: int, dtype: str = "float32", name: str = "mine") -> Result:
    return result(name, tp, dtype=dtype, gates=(gate(1e-7),))


def sentences(*results: Result) -> list[str]:
    return [sentence(failure) for failure in failures(results)]


def test_one_mistake_at_every_degree_in_both_dtypes_is_one_paragraph_of_one_screen(tmp_path: Path) -> None:
    run = [
        clean(1),
        clean(1, "bfloat16"),
        *(wrong(tp, dtype) for tp in (2, 8, 32, 4) for dtype in ("float32", "bfloat16")),
    ]
    [failure] = failures(run)
    assert sentence(failure) == "mine: output.0 is wrong at tp 2, 4, 8, 32 in both dtypes: bias x tp"
    lines = details(failure)
    assert lines[:3] == [
        "it passes at tp 1 in both dtypes",
        "first wrong tensor: down on ranks 0-1; act before it is right",
        "likely cause: bias x tp: down.bias is added once per rank (accounts for 100.00% of the squared error; 1.0e-07 "
        "is left, rounding explains up to 1.0e-06; tp 2 float32)",
    ]
    assert lines[3] == ("tp 2 float32: rel_L2 5.00e-01, 5e+04 x its limit; worst at [0, 3]: 2 instead of 1 (seed 7)")
    assert len(lines) == 3 + 8
    whole = shown(new_record(tmp_path, *run), width=200)
    assert len(whole) - whole.index(next(line for line in whole if line.startswith("MISMATCH"))) <= 24


def test_other_tensors_other_causes_and_other_components_are_other_mistakes() -> None:
    run = (wrong(2), wrong(8, tensor="up"), wrong(32, cause=TWICE), wrong(2, name="other"))
    assert sentences(*run) == [
        "mine: output.0 is wrong at tp 2 in float32: bias x tp",
        "mine: output.0 is wrong at tp 8 in float32: bias x tp",
        "mine: output.0 is wrong at tp 32 in float32: scaled 2",
        "other: output.0 is wrong at tp 2 in float32: bias x tp",
    ]


def test_a_cause_must_hold_at_every_degree_that_names_any() -> None:
    both = replace(wrong(2), diagnosis=(TWICE, BIAS))
    assert sentences(both, wrong(8)) == ["mine: output.0 is wrong at tp 2, 8 in float32: bias x tp"]
    assert sentences(both) == ["mine: output.0 is wrong at tp 2 in float32: scaled 2 or bias x tp"]


def test_what_has_no_cause_joins_the_only_mistake_of_its_tensor_and_no_other() -> None:
    [joined] = failures([wrong(2), wrong(8, cause=None)])
    assert "named at tp 2 in float32" in details(joined)
    assert len(failures([wrong(2), wrong(8, cause=TWICE), wrong(32, cause=None)])) == 3
    assert len(failures([wrong(2), wrong(8, cause=None, tensor="up")])) == 2


def test_bfloat16_without_a_cause_follows_float32_at_its_degree() -> None:
    later = wrong(2, "bfloat16", cause=None, tensor="output.0")
    [joined] = failures([wrong(2), later])
    assert any("tp 2 bfloat16: first wrong tensor: output.0; rel_L2 of output.0 is" in line for line in details(joined))
    assert len(failures([clean(2), wrong(8), later])) == 2  # float32 saw nothing there: a mistake of its own
    assert len(failures([wrong(2), replace(later, diagnosis=(TWICE,))])) == 2


def test_ranks_are_told_once_where_they_are_the_same_and_for_each_result_where_not() -> None:
    one, two = (replace(wrong(tp), first_divergence=divergence(ranks=ranks)) for tp, ranks in ((2, (1,)), (8, (7,))))
    [failure] = failures([one, two])
    lines = details(failure)
    assert lines[0] == "first wrong tensor: down; act before it is right"
    assert lines[2].startswith("tp 2 float32: on rank 1; rel_L2 5.00e-01")
    assert lines[3].startswith("tp 8 float32: on rank 7; rel_L2 5.00e-01")
    [failure] = failures([replace(wrong(tp), first_divergence=divergence(ranks=tuple(range(tp)))) for tp in (2, 8)])
    assert details(failure)[0] == "first wrong tensor: down on all ranks; act before it is right"


def test_no_known_cause_is_said_once() -> None:
    [failure] = failures([wrong(2, cause=None), wrong(8, cause=None)])
    said = [line for line in details(failure) if "cause" in line]
    assert said == ["no known cause: none of 12 guesses at known mistakes gives these numbers"]


def test_a_check_that_failed_is_named_and_told_for_each_degree() -> None:
    check = Check(name="schedule", passed=False, detail="rank 1 against rank 0: 2 collectives instead of 1")
    run = [replace(clean(tp), status=Status.MISMATCH, checks=(check,), reason=f"schedule: {tp}") for tp in (2, 8)]
    [failure] = failures(run)
    assert sentence(failure) == "mine: the check `schedule` failed at tp 2, 8 in float32"
    assert details(failure)[0] == f"tp 2 float32: schedule: {check.detail}"
    assert len(failures([*run, wrong(2)])) == 2


def test_ranks_that_ended_are_told_by_what_they_said_the_worst_first() -> None:
    crash = [
        result("mine", tp, Status.CRASH, reason=f"rank 1 of {tp}: no", dtype=d)
        for tp in (2, 8)
        for d in ("float32", "bfloat16")
    ]
    void = [result(name, 8, Status.VOID, reason="the control passed: x") for name in ("mine", "other")]
    found = failures([wrong(32), *void, *crash])
    assert [sentence(failure) for failure in found] == [
        "mine: the ranks crashed at tp 2, 8 in both dtypes",
        "mine: output.0 is wrong at tp 32 in float32: bias x tp",
        "mine, other: this proves nothing at tp 8 in float32: the control passed: x",
    ]
    assert details(found[0])[:2] == ["tp 2 float32: rank 1 of 2: no", "tp 2 bfloat16: rank 1 of 2: no"]


def test_layers_are_named_where_the_run_has_several() -> None:
    both = [replace(wrong(2, name="attention"), layer=layer) for layer in (0, 1)]
    assert sentences(*both) == ["attention layer 0, 1: output.0 is wrong at tp 2 in float32: bias x tp"]
    assert sentences(both[1], clean(2, name="attention")) == [
        "attention layer 1: output.0 is wrong at tp 2 in float32: bias x tp"
    ]


def test_the_pages_begin_with_the_same_paragraphs(tmp_path: Path) -> None:
    record = new_record(tmp_path, clean(1), wrong(2), wrong(8))
    head = "mine: output.0 is wrong at tp 2, 8 in float32: bias x tp"
    page = PAGES["report.html"](record, ())
    assert page.count(f"<strong>{head}</strong>") == 1
    assert page.index(head) < page.index('id="verdicts"')
    text = PAGES["report.md"](record, ())
    assert text.count(f"**MISMATCH** {head}") == 1
    assert text.index(head) < text.index("| component")


HALF = replace(BIAS, name="all-reduce missing", sentence="an all_reduce is missing")
FURTHER = Mistake(divergence=divergence("total", after="down"), causes=(HALF,))
PUT_RIGHT = "with these put right, the output is right"


def test_every_mistake_is_listed_in_order_with_what_is_right_then() -> None:
    unknown = Mistake(divergence=divergence("norm", after="total"))
    alike = (Mistake(divergence=divergence("gate")), Mistake(divergence=divergence("up"), causes=(TWICE,)))
    results = [
        replace(wrong(tp), alike=alike, further=(FURTHER, unknown) if tp == 8 else (FURTHER,), put_right=PUT_RIGHT)
        for tp in (2, 8)
    ]
    [failure] = failures(results)
    head = "mine: output.0 is wrong at tp 2, 8 in float32: 3 mistakes: 1. bias x tp; 2. all-reduce missing; 3. in norm"
    assert sentence(failure) == head
    lines = details(failure)
    assert "wrong by itself too, by the same mistake as far as can be told: gate, up (scaled 2)" in lines
    [second] = [line for line in lines if line.startswith("mistake 2: total on all ranks; ")]
    assert second.endswith("worst at [0, 3]: 2 instead of 1; what is before it was put right")
    assert lines[lines.index(second) + 1].startswith("likely cause: all-reduce missing: an all_reduce is missing (")
    [third] = [line for line in lines if line.startswith("mistake 3 (at tp 8 in float32): norm on ranks 0-1; ")]
    assert lines[lines.index(third) + 1] == "no known cause"
    assert lines[-1] == PUT_RIGHT


def test_what_becomes_of_the_output_is_told_for_each_degree_where_it_differs() -> None:
    still = "with it put right, output.0 is still wrong, for a reason that was not found"
    right = "with it put right, the output is right"
    [failure] = failures([replace(wrong(tp), put_right=said) for tp, said in ((2, right), (8, still))])
    assert details(failure)[-2:] == [f"{right} (at tp 2 in float32)", f"{still} (at tp 8 in float32)"]


def test_all_pages_list_further_mistakes(tmp_path: Path) -> None:
    run = new_record(tmp_path, replace(wrong(2), further=(FURTHER,), put_right=PUT_RIGHT))
    for name, page in PAGES.items():
        for words in ("all-reduce missing", "what is before it was put right", PUT_RIGHT):
            assert words in page(run), name
