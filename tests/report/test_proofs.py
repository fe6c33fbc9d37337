"""Verdicts in exact arithmetic on the pages of a run: what was proved, what was not and why, and what differs."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from records import exact, gate, new_record, proof, ratio, result, shown
from report_pages import Tree

from tp_harness.report import html, junit, markdown
from tp_harness.report.failure_text import details, sentence
from tp_harness.report.failures import failures, title_of
from tp_harness.report.headline import cell, legend
from tp_harness.report.proofs import claim, lines, table
from tp_harness.results.proof import at_most
from tp_harness.results.result import Cause, Check, Divergence, Result, Status
from tp_harness.results.run_record import RunRecord

TIE = "the choice of experts at token 17: experts 3 and 5 are a tie"
CAUSE = Cause(name="bias x tp", sentence="the bias is added once per rank", explained=1.0, residual=0.0, limit=0.0)
CERTAIN = replace(CAUSE, exact=True)
FIRST = Divergence(
    tensor="reduced", kind="value", after="total", ranks=(0, 1), index=(0, 3, 5), actual=2.0, expected=1.0
)
PROVED = exact(tp=2)
UNPROVED = exact(Status.NOT_PROVED, of=proof(undecided=(TIE,)), reason="1 decision is a tie")
DIFFERENT = exact(
    Status.DIFFERENT, of=proof(shadow=1.2e-3), reason="residues differ", first_divergence=FIRST, diagnosis=(CERTAIN,)
)
WRONG_FLOAT = result(
    status=Status.MISMATCH,
    gates=(gate(1e-3),),
    first_divergence=replace(FIRST, gate=gate(0.5, tensor="reduced")),
    reason="rel_L2",
)


def run(folder: Path, *results: Result) -> RunRecord:
    record = new_record(folder, *results)
    record.finished = True
    return record


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (PROVED, ("PROVED", "")),
        (UNPROVED, ("NOT PROVED", "")),
        (DIFFERENT, ("DIFFERENT", "1.2e-03")),
        (
            replace(DIFFERENT, status=Status.MISMATCH, checks=(Check(name="schedule", passed=False, detail="x"),)),
            ("MISMATCH", "schedule"),
        ),
        (result(status=Status.CRASH, dtype="exact"), ("CRASH", "")),
    ],
)
def test_a_cell_shows_by_how_much_something_is_different(found: Result, words: tuple[str, str]) -> None:
    assert cell(found) == words


@pytest.mark.parametrize(
    ("bound", "digits", "text"),
    [(7.45e-6, 0, "8e-06"), (7.42e-6, 1, "7.5e-06"), (3e-6, 0, "3e-06"), (9.6e-6, 0, "1e-05"), (0.0, 1, "0.0e+00")],
)
def test_a_bound_is_rounded_up(bound: float, digits: int, text: str) -> None:
    assert at_most(bound, digits) == text


def test_the_rows_of_a_component_stand_together() -> None:
    other = [replace(exact(tp=tp), component="rope") for tp in (1, 2)]
    _, rows = table([exact(tp=1), other[0], exact(tp=2), other[1]])
    assert [(row[0], row[2]) for row in rows] == [("mlp", "1"), ("mlp", "2"), ("rope", "1"), ("rope", "2")]


def test_the_legend_explains_exact_rows_and_rows_in_float64() -> None:
    assert legend((PROVED,)).startswith("exact: PROVED is the same function on the branches that were taken; another ")
    assert "with probability 4e-06 at most." in legend((PROVED,))
    rows = [result(dtype=dtype, gates=(gate(1e-15),)) for dtype in ("float64", "float32")]
    assert legend(rows).startswith("float64 and float32: rel_L2, the relative L2 error against the float64 oracle.")
    half = result(dtype="bfloat16", gates=(ratio(1.0),))
    assert "bfloat16: R, that error over" in legend((*rows[:1], half))


def test_a_terminal_shows_exact_rows_among_the_others(tmp_path: Path) -> None:
    said = shown(run(tmp_path, PROVED, UNPROVED, DIFFERENT), width=200)
    row = next(line for line in said if "exact" in line and "mlp" in line)
    assert "│ PROVED │" in row
    assert any(line.startswith("1 PROVED, 1 NOT PROVED, 1 DIFFERENT (") for line in said)


def test_one_mistake_in_exact_and_floating_point_is_one_paragraph_led_by_the_certain_one() -> None:
    [failure] = failures([DIFFERENT, WRONG_FLOAT, result(dtype="bfloat16", gates=(ratio(1.0),))])
    assert sentence(failure) == "mlp: output.0 is not the reference's at tp 8 in exact and float32: bias x tp"
    assert details(failure) == [
        "it passes at tp 8 in bfloat16",
        "first wrong tensor: reduced on ranks 0-1; total before it is right",
        "cause: bias x tp: the bias is added once per rank (not equal, and this known mistake gives exactly these "
        "residues; tp 8 exact)",
        "named at tp 8 in exact",
        "tp 8 exact: residues: output.0 is another function; wrong at [0, 3, 5]: 2 instead of 1 (seed 7)",
        "tp 8 float32: rel_L2 5.00e-01, 5e+04 x its limit; worst at [0, 3, 5]: 2 instead of 1 (seed 7)",
    ]
    [unknown] = failures([replace(DIFFERENT, diagnosis=(), hypotheses=12)])
    assert "no known cause: none of 12 guesses at known mistakes gives these numbers" in details(unknown)


def test_a_cause_that_only_the_shadows_fit_is_likely_and_what_differs_is_decided() -> None:
    by_shadows = replace(CAUSE, residual=2e-16, limit=1e-14)
    odd = replace(DIFFERENT, proof=proof(undecided=(TIE,)), diagnosis=(by_shadows,))
    said = details(failures([odd])[0])
    assert not any(TIE in line for line in (*said, *lines(odd), *table([odd])[1][0]))
    [cause] = [line for line in said if "cause: " in line]
    assert cause.startswith("likely cause: bias x tp: the bias is added once per rank (accounts for 100.00% of ")
    assert "rounding explains up to 1.0e-14; tp 8 exact)" in cause


def test_a_mistake_of_which_floating_point_alone_knows_the_cause_is_one_paragraph() -> None:
    named = replace(WRONG_FLOAT, diagnosis=(CAUSE,))
    other = replace(FIRST, tensor="total")
    [failure] = failures([replace(DIFFERENT, diagnosis=(), first_divergence=FIRST), named])
    assert failure.first is named
    certain = replace(DIFFERENT, first_divergence=other)
    assert len(failures([certain, replace(named, diagnosis=())])) == 1, "the row without a cause joins the exact one"
    assert len(failures([certain, named])) == 2, "each has a cause, for another tensor"


def test_a_certain_cause_leads_what_floating_point_says_of_the_same_tensor() -> None:
    alike = replace(CAUSE, name="scaled", sentence="it is scaled", limit=1e-6)
    [failure] = failures([replace(WRONG_FLOAT, diagnosis=(alike,)), DIFFERENT])
    assert failure.first is DIFFERENT
    assert [cause.name for cause in failure.causes] == ["bias x tp"]
    assert not any("scaled" in line for line in details(failure))
    likely = replace(DIFFERENT, diagnosis=(CAUSE,))
    assert len(failures([replace(WRONG_FLOAT, diagnosis=(alike,)), likely])) == 2, "neither is certain"


def test_what_is_not_proved_says_why_and_that_the_other_verdicts_stand() -> None:
    rows = [exact(tp=1), UNPROVED, result(gates=(gate(1e-7),)), result(dtype="bfloat16", gates=(ratio(1.0),))]
    [failure] = failures(rows)
    assert title_of([failure]) == "What is not decided"
    assert sentence(failure) == "mlp: the same function is not proved at tp 8 in exact: 1 decision is a tie"
    assert details(failure) == [
        "this is neither a failure nor a pass; the verdicts in floating point stand: it passes at tp 8 in float32 and "
        "bfloat16",
        f"not decided: {TIE}",
    ]
    told = replace(UNPROVED, reason=f"{TIE}.")
    assert details(failures([told])[0]) == [
        "this is neither a failure nor a pass; the verdicts in floating point stand"
    ]
    assert title_of(failures([UNPROVED, DIFFERENT])) == "What is wrong"


def test_what_is_undecided_says_why() -> None:
    rows = [replace(UNPROVED, status=Status.UNDECIDED, dtype="float64", proof=None, tp=tp, gates=(gate(0.5),),
                    reason=f"0.5 at tp {tp}: roundings look like this") for tp in (2, 8)]  # fmt: skip
    [failure] = failures(rows)
    assert sentence(failure) == "mlp: this is not decided at tp 2, 8 in float64"
    assert details(failure) == [f"tp {tp} float64: 0.5 at tp {tp}: roundings look like this" for tp in (2, 8)]


def test_a_table_and_lines_say_what_a_proof_rests_on() -> None:
    assert lines(PROVED) == [
        "2 points modulo 2098127 and 1048919",
        "the float64 shadows of the outputs differ by 6.0e-16 at most",
        "smallest margin of a decision: 4.1e-04, the choice of experts in layer 0",
        "another function is accepted with probability 3.2e-06 at most, typically 1.1e-12",
        "branches taken: 30 of 32 experts chosen",
    ]
    assert not any("accepted" in line for line in (*lines(UNPROVED), *lines(DIFFERENT)))
    assert f"not decided: {TIE}" in lines(UNPROVED)
    assert lines(result()) == [] and table([result()])[1] == [] and claim([result()]) == ""
    assert not any("margin" in line for line in lines(exact(of=proof(margin=math.inf))))
    _, rows = table([PROVED, UNPROVED, result(), exact(of=proof(margin=math.inf, coverage=()))])
    margin = "4.1e-04, the choice of experts in layer 0"
    assert rows == [
        ("mlp", "0", "2", "PROVED", "2", "3.2e-06", "1.1e-12", margin, "6.0e-16", "30 of 32 experts chosen"),
        ("mlp", "0", "8", "NOT PROVED", "2", "-", "-", margin, "6.0e-16", f"{TIE}; 30 of 32 experts chosen"),
        ("mlp", "0", "8", "PROVED", "2", "3.2e-06", "1.1e-12", "no decision", "6.0e-16", "-"),
    ]
    assert claim([PROVED, UNPROVED]).startswith("Reference and ranks computed with residues modulo 2098127, 1048919")


def test_the_page_has_a_part_for_proofs(tmp_path: Path) -> None:
    page = html.render(run(tmp_path, PROVED, replace(UNPROVED, component="rope"), DIFFERENT))
    tree = Tree(page)
    assert {"proofs", "proofs-title"} <= set(tree.values("id"))
    assert "smallest margin of a decision: 4.1e-04, the choice of experts in layer 0" in tree.text
    assert "It gives exactly these residues." in tree.text
    assert {"cell PROVED first", "cell NOT_PROVED", "cell DIFFERENT"} <= set(tree.values("class"))
    assert {"result PROVED", "result NOT_PROVED", "result DIFFERENT"} <= set(tree.values("class"))
    assert 'id="proofs"' not in html.render(run(tmp_path, result()))


def test_a_pull_request_s_text_has_the_proofs(tmp_path: Path) -> None:
    text = markdown.render(run(tmp_path, PROVED, UNPROVED, DIFFERENT))
    assert "| `mlp` | 0 | exact | PROVED | **DIFFERENT** 1.2e-03 |" in text
    assert "**NOT PROVED** mlp: the same function is not proved at tp 8 in exact" in text
    assert "<details><summary>Proofs in exact arithmetic</summary>" in text
    assert "Proofs" not in markdown.render(run(tmp_path, result()))


def test_ci_counts_what_is_not_proved_as_skipped_and_what_differs_as_failed(tmp_path: Path) -> None:
    text = junit.render(run(tmp_path, PROVED, UNPROVED, DIFFERENT))
    assert 'tests="3" failures="1" errors="0" skipped="1"' in text
    assert '<skipped message="1 decision is a tie"' in text
    assert '<failure type="DIFFERENT" message="residues differ">' in text
    assert '<property name="bound" value="3.2e-06" />' in text
    assert '<property name="branches taken" value="30 of 32 experts chosen" />' in text
